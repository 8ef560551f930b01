"""Failure modes: which kinds of poses and which viewpoints an arm fails on, before and after.

Poses are grouped by k-means on the joints in the pelvis' own frame, so a group does not depend on
where the camera stood or which way the person faced.
"""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.cluster.vq import kmeans2

from posegen_ray.evaluation.protocol import motion_name
from posegen_ray.records import Samples
from posegen_ray.seeding import numpy_stream

AZIMUTH_LABELS = (
    "front", "front left", "left", "back left", "back", "back right", "right", "front right",
)  # fmt: skip
ELEVATION_EDGES_DEG = (-90.0, -45.0, -15.0, 15.0, 45.0, 90.0)
ELEVATION_LABELS = ("far below", "below", "eye level", "above", "far above")
_RESTARTS = 5

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class FailureMode:
    """One group of similar samples. Errors are means over the group; None when it is empty."""

    label: str
    count: int
    before_mm: float | None
    after_mm: float | None
    representative: int | None = None  # row of the most typical sample


@dataclass(frozen=True)
class Atlas:
    """Errors by pose cluster (largest first) and by viewpoint."""

    clusters: tuple[FailureMode, ...]
    viewpoints: tuple[tuple[FailureMode, ...], ...]  # [elevation, azimuth], labels as above


def build_atlas(
    samples: Samples,
    before: Floats,  # [N] mm, error of the baseline
    after: Floats,  # [N] mm, error of the arm that is looked at
    clusters: int = 8,
    seed: int = 0,
) -> Atlas:
    """Groups the samples and averages both errors in each group."""
    cluster_of, representatives = cluster_poses(pelvis_frame_joints(samples), clusters, seed)
    motions = [motion_name(clip) for clip in samples.clips]
    modes = []
    for number, representative in enumerate(representatives):
        rows = np.flatnonzero(cluster_of == number)
        label = motions_text(Counter(motions[row] for row in rows))
        modes.append(_mode(label, rows, before, after, int(representative)))
    azimuth, elevation = view_bins(samples.view.detach().cpu().double().numpy())
    grid = tuple(
        tuple(
            _mode(
                f"{AZIMUTH_LABELS[column]}, {ELEVATION_LABELS[row]}",
                np.flatnonzero((elevation == row) & (azimuth == column)),
                before,
                after,
            )
            for column in range(len(AZIMUTH_LABELS))
        )
        for row in range(len(ELEVATION_LABELS))
    )
    return Atlas(tuple(modes), grid)


def pelvis_frame_joints(
    samples: Samples,
) -> Floats:  # [N, 36] metres
    """The 12 joints in the pelvis' axes (x: the person's left, y: up, z: ahead), mid-hip at 0."""
    world = samples.joints.double() @ samples.camera.rotation.double()
    local = world @ samples.rotations[:, 0].double()
    return np.asarray(local.flatten(1).detach().cpu().numpy(), dtype=np.float64)


def cluster_poses(
    features: Floats,  # [N, F]
    clusters: int,
    seed: int,
) -> tuple[Indices, Indices]:  # cluster of each row [N], row nearest to each centre [K]
    """k-means (k-means++ starts, best of several), clusters numbered from the largest down.

    There are at most as many clusters as different rows; K is how many are not empty.
    """
    clusters = min(clusters, len(np.unique(features.round(6), axis=0)))
    best: tuple[float, Indices, Floats] | None = None
    for restart in range(_RESTARTS):
        random = numpy_stream(seed, "cluster_poses", restart)
        with warnings.catch_warnings():  # of empty clusters: they are dropped below
            warnings.simplefilter("ignore", UserWarning)
            centres, labels = kmeans2(features, clusters, iter=30, minit="++", seed=random)
        inertia = float(np.square(features - centres[labels]).sum())
        if best is None or inertia < best[0]:
            best = (inertia, labels.astype(np.intp), centres)
    assert best is not None
    _, labels, centres = best
    sizes = np.bincount(labels, minlength=clusters)
    order = [int(k) for k in np.argsort(-sizes, kind="stable") if sizes[k]]
    rank = np.full(clusters, -1, dtype=np.intp)
    rank[order] = np.arange(len(order))
    nearest = []
    for cluster in order:
        rows = np.flatnonzero(labels == cluster)
        distance = np.square(features[rows] - centres[cluster]).sum(1)
        nearest.append(rows[distance.argmin()])
    return rank[labels], np.asarray(nearest, dtype=np.intp)


def view_bins(
    view: Floats,  # [N, 3] azimuth, elevation, roll; radians
) -> tuple[Indices, Indices]:  # azimuth bin [N], elevation bin [N]
    """Eight azimuth bins centred on AZIMUTH_LABELS (left: seen from the person's left), five of
    elevation."""
    width = 2 * np.pi / len(AZIMUTH_LABELS)
    azimuth = np.floor((view[:, 0] / width + 0.5) % len(AZIMUTH_LABELS)).astype(np.intp)
    inner = np.deg2rad(ELEVATION_EDGES_DEG[1:-1])
    return azimuth % len(AZIMUTH_LABELS), np.digitize(view[:, 1], inner).astype(np.intp)


def _mode(
    label: str, rows: Indices, before: Floats, after: Floats, representative: int | None = None
) -> FailureMode:
    if len(rows) == 0:
        return FailureMode(label, 0, None, None)
    return FailureMode(
        label, len(rows), float(before[rows].mean()), float(after[rows].mean()), representative
    )


def motions_text(motions: Counter[str]) -> str:
    """The motions that make up most of a group, e.g. `walk 61 %, run 30 %`, or `walk`."""
    if len(motions) == 1:
        return next(iter(motions))
    total = sum(motions.values())
    parts = [
        f"{name} {count / total:.0%}".replace("%", " %") for name, count in motions.most_common(2)
    ]
    return ", ".join(parts)

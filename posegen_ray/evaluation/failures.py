"""The failure atlas: what an estimator gets wrong (pose x viewpoint x body part), before and after.

A cell is a cluster of poses seen from one kind of viewpoint. The clusters are those of the test
set; other samples (what a generator made) are sorted into the same cells, which says how many of
the estimator's failures they show. `atlas.csv` holds every cell; the page is made in
`posegen_ray.evaluation.failure_page`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from posegen_ray.body.skeleton import LIMB_JOINT_NAMES
from posegen_ray.evaluation.atlas import (
    cluster_poses,
    motions_text,
    pelvis_frame_joints,
)
from posegen_ray.evaluation.protocol import motion_name
from posegen_ray.records import Samples
from posegen_ray.seeding import numpy_stream

PARTS = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
SIDES = ("front", "left", "back", "right")  # of the person, towards the camera
HEIGHTS = ("below", "eye level", "above")
HEIGHT_EDGES_DEG = (-15.0, 20.0)
FAILS = 1.5  # a sample fails with an error of so many medians of the baseline's on the source
FAILING = 0.5  # a cell fails when this share of its samples does
FEWEST = 5  # samples of a cell that is said to fail
SHOWN = 3  # failures that have to be found in a cell for it to be covered
_DRAWS = 1000

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Cells:
    """The cells of a test set: centres of its pose clusters, each with every kind of viewpoint."""

    centres: Floats  # [K, 36] mean of the cluster's joints in the pelvis' frame, metres
    labels: tuple[str, ...]  # K, the motions that make up most of it

    def of(
        self,
        features: Floats,  # [N, 36] from pelvis_frame_joints
        view: Floats,  # [N, 3] azimuth, elevation, roll; radians
    ) -> Indices:  # [N] cell
        """The cell of each sample: nearest cluster, kind of viewpoint."""
        apart = np.square(features[:, None] - self.centres[None]).sum(-1)
        return np.asarray(apart.argmin(1) * len(SIDES) * len(HEIGHTS) + viewpoints(view))

    def name(self, cell: int) -> tuple[str, str]:
        """What a cell shows: its poses, its viewpoint."""
        cluster, viewpoint = divmod(cell, len(SIDES) * len(HEIGHTS))
        height, side = divmod(viewpoint, len(SIDES))
        return self.labels[cluster], f"{SIDES[side]}, {HEIGHTS[height]}"


def viewpoints(
    view: Floats,  # [N, 3] azimuth, elevation, roll; radians
) -> Indices:  # [N] height * 4 + side
    """Quarter of the circle that the person turns to the camera, and the camera's height."""
    side = np.floor((view[:, 0] / (np.pi / 2) + 0.5) % len(SIDES)).astype(np.intp) % len(SIDES)
    height = np.digitize(view[:, 1], np.deg2rad(HEIGHT_EDGES_DEG))
    return np.asarray(height * len(SIDES) + side, dtype=np.intp)


def cells_of(samples: Samples, clusters: int = 12, seed: int = 0) -> Cells:
    """Sorts a test set into pose clusters."""
    features = pelvis_frame_joints(samples)
    cluster_of, _ = cluster_poses(features, clusters, seed)
    motions = [motion_name(clip) for clip in samples.clips]
    centres, labels = [], []
    for number in range(int(cluster_of.max()) + 1):
        rows = np.flatnonzero(cluster_of == number)
        centres.append(features[rows].mean(0))
        labels.append(motions_text([motions[row] for row in rows]))
    return Cells(np.stack(centres), tuple(labels))


def failure_table(
    samples: Samples,
    sets: Sequence[str],  # N
    before: Floats,  # [seeds or 1, N, 12] mm, error of each joint
    after: Floats,  # [seeds or 1, N, 12]
    cells: Cells,
    seed: int = 0,
) -> pd.DataFrame:
    """Every cell that has samples, the worst first (by the mean error before).

    Columns: cell, poses, viewpoint, samples, before_mm, after_mm, change_mm with change_low and
    change_high (95 %, samples of the cell resampled; NaN with fewer than FEWEST), failing_before
    and failing_after (share of samples above the threshold), fails (whether the cell does),
    threshold_mm, <part>_before_mm and <part>_after_mm for PARTS, worst_part (before), typical
    (row of the sample nearest to the cell's mean error).
    """
    threshold = failure_threshold(sets, before)
    view = samples.view.detach().cpu().double().numpy()
    cell_of = cells.of(pelvis_frame_joints(samples), view)
    first, last = before.mean(-1), after.mean(-1)  # [seeds, N]
    random = numpy_stream(seed, "failure_table")
    rows = []
    for cell in np.unique(cell_of):
        members = np.flatnonzero(cell_of == cell)
        poses, viewpoint = cells.name(int(cell))
        change = last[:, members].mean(0) - first[:, members].mean(0)
        low = high = np.nan
        if len(members) >= FEWEST:
            drawn = random.integers(len(members), size=(_DRAWS, len(members)))
            low, high = np.percentile(change[drawn].mean(1), [2.5, 97.5])
        parts = {
            f"{part}_{when}_mm": float(errors[:, members][..., _columns(part)].mean())
            for part in PARTS
            for when, errors in (("before", before), ("after", after))
        }
        mean = first[:, members].mean(0)
        failing = float((first[:, members] > threshold).mean())
        rows.append(
            {
                "cell": int(cell),
                "poses": poses,
                "viewpoint": viewpoint,
                "samples": len(members),
                "before_mm": float(mean.mean()),
                "after_mm": float(last[:, members].mean()),
                "change_mm": float(change.mean()),
                "change_low": float(low),
                "change_high": float(high),
                "failing_before": failing,
                "failing_after": float((last[:, members] > threshold).mean()),
                "fails": failing >= FAILING and len(members) >= FEWEST,
                "threshold_mm": threshold,
                **parts,
                "worst_part": max(PARTS, key=lambda part: parts[f"{part}_before_mm"]),
                "typical": int(members[np.abs(mean - mean.mean()).argmin()]),
            }
        )
    return pd.DataFrame(rows).sort_values("before_mm", ascending=False, ignore_index=True)


def failure_threshold(sets: Sequence[str], before: Floats) -> float:
    """FAILS times the baseline's median error on the source images (on all, where there are none),
    mm."""
    known = np.isin(np.asarray(sets), ("source", "val_source"))
    errors = before.mean(-1).mean(0)
    return float(FAILS * np.median(errors[known] if known.any() else errors))


def coverage(
    table: pd.DataFrame,  # from failure_table
    cells: Cells,
    features: Floats,  # [N, 36] of other samples, e.g. generated ones
    view: Floats,  # [N, 3]
    errors: Floats,  # [N] mm, the starting estimator's
) -> float:
    """Share of the failing cells in which these samples show SHOWN failures or more; NaN if no cell
    fails."""
    failing = table.loc[table["fails"], "cell"].to_numpy()
    if len(failing) == 0:
        return float("nan")
    threshold = float(table["threshold_mm"].iloc[0])
    shown = cells.of(features, view)[errors > threshold]
    counts = np.array([(shown == cell).sum() for cell in failing])
    return float((counts >= SHOWN).mean())


def _columns(part: str) -> list[int]:
    return [i for i, name in enumerate(LIMB_JOINT_NAMES) if name.endswith(part)]

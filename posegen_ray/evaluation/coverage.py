"""Do training samples reach what the estimator fails on? Coverage of failure clusters.

Held-out samples are grouped in pose x view space; a group that the baseline fails on is a failure
cluster. A set of samples (generated, or a control) reaches it when enough of its samples are
nearest to that group and are failures themselves: near alone, or hard alone, is not enough.

Legend: N held-out samples, M samples of a set, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

from posegen_ray.errors import DataError
from posegen_ray.evaluation.atlas import cluster_poses, pelvis_frame_joints
from posegen_ray.records import Samples

VIEW_METRES = 1.0  # a unit of view direction counts like a metre of joint movement

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class FailureClusters:
    """Groups of held-out samples, and which of them the baseline fails on."""

    centres: Floats  # [K, F], largest group first
    sizes: Indices  # [K] held-out samples
    mean_mm: Floats  # [K] mean error of the baseline
    threshold_mm: float

    @property
    def failing(self) -> Indices:
        """The groups whose mean error is above the threshold: the failure clusters."""
        return np.flatnonzero(self.mean_mm > self.threshold_mm)


@dataclass(frozen=True)
class Coverage:
    """How a set of samples lies to the failure clusters."""

    name: str
    samples: int
    failures: int  # samples with an error above the threshold, wherever they lie
    per_cluster: tuple[tuple[int, int], ...]  # (failure cluster, samples that reach it)
    reached: int  # failure clusters that enough samples reach
    share: float | None  # of the failure clusters; None: there are none


def pose_view_features(
    samples: Samples,
) -> Floats:  # [N, 39] metres
    """Joints in the pelvis' frame, and the direction from which the person is seen."""
    view = samples.view.detach().cpu().double().numpy()
    azimuth, elevation = view[:, 0], view[:, 1]
    direction = np.stack(
        [
            np.sin(azimuth) * np.cos(elevation),
            np.sin(elevation),
            np.cos(azimuth) * np.cos(elevation),
        ],
        1,
    )
    return np.concatenate([pelvis_frame_joints(samples), VIEW_METRES * direction], 1)


def find_failure_clusters(
    features: Floats,  # [N, F] of held-out samples
    errors_mm: Floats,  # [N] of the baseline on them
    threshold_mm: float,
    clusters: int = 16,
    seed: int = 0,
) -> FailureClusters:
    """Groups held-out samples (k-means) and finds the groups that the baseline fails on.

    Raises:
        DataError: no samples, lengths that differ, NaN or Inf.
    """
    _check("The held-out samples", features, errors_mm)
    label, representatives = cluster_poses(features, clusters, seed)
    groups = [label == group for group in range(len(representatives))]
    return FailureClusters(
        np.stack([features[inside].mean(0) for inside in groups]),
        np.array([inside.sum() for inside in groups], dtype=np.intp),
        np.array([errors_mm[inside].mean() for inside in groups]),
        threshold_mm,
    )


def failure_coverage(
    clusters: FailureClusters,
    name: str,
    features: Floats,  # [M, F] of the set's samples, made as the clusters' were
    errors_mm: Floats,  # [M] of the same baseline on them
    least: int = 1,
) -> Coverage:
    """Which share of the failure clusters a set reaches with `least` samples each.

    A larger set reaches more: compare sets of one size.

    Raises:
        DataError: no samples, lengths that differ, other features, NaN or Inf.
    """
    _check(f"The samples of {name!r}", features, errors_mm)
    if features.shape[1] != clusters.centres.shape[1]:
        raise DataError(
            f"The samples of {name!r} have {features.shape[1]} features, the clusters "
            f"{clusters.centres.shape[1]}.",
            "Make both with pose_view_features.",
        )
    hard = errors_mm > clusters.threshold_mm
    nearest = cdist(features[hard], clusters.centres).argmin(1)
    counts = np.bincount(nearest, minlength=len(clusters.centres))
    failing = clusters.failing
    reached = int((counts[failing] >= least).sum())
    return Coverage(
        name,
        len(features),
        int(hard.sum()),
        tuple((int(group), int(counts[group])) for group in failing),
        reached,
        reached / len(failing) if len(failing) else None,
    )


def _check(what: str, features: Floats, errors: Floats) -> None:
    if features.ndim != 2 or not len(features) or errors.shape != (len(features),):
        raise DataError(
            f"{what} have features of shape {features.shape} and errors of shape {errors.shape}.",
            "Give one row of features and one error a sample, and at least one sample.",
        )
    if not (np.isfinite(features).all() and np.isfinite(errors).all()):
        raise DataError(f"{what} hold NaN or Inf.", "Leave broken samples out.")

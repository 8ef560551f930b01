"""What a set of poses is like, measured against real motion capture. No images, no estimator.

The feature is where the 23 joints below the pelvis are in the pelvis' own axes, on one body: it has
a unit (metres), weighs a joint by how far it moves the body, and does not depend on camera, heading
or place. Orientation to gravity does not count either: a push-up and a plank on the wall are one
pose. All measures are made together, because each alone can be had cheaply: diversity by broken
poses, precision by copies.

Legend: N poses of a set, M reference poses, F = 69 features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy.spatial.distance import cdist, pdist
from torch import Tensor

from posegen_ray.body.model import forward_kinematics
from posegen_ray.errors import DataError

POSE_SETS_TABLE = "pose_sets.csv"
REFERENCES = ("source", "validation", "ood")  # a run's real poses, by what the clips are for
NEIGHBOURS = 3  # k of precision and recall, as published
_SAME = 1e-5  # metres: a pose that went through a file is no farther from itself (float32)
YARDSTICK = "left-out clip"  # names of the yardstick's rows begin with it

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PoseSetMeasures:
    """One set of poses against one reference. Distances in mm, shares in 0..1."""

    name: str
    reference: str
    poses: int
    reference_poses: int
    apd_mm: float  # mean distance of a joint between two different poses of the set
    reference_apd_mm: float  # the same of the reference; a set far above it holds broken poses
    fid_cm2: float  # squared Fréchet distance of the two Gaussians
    precision: float  # share of the set inside the reference's k-NN manifold
    recall: float  # share of the reference inside the set's k-NN manifold
    nearest_median_mm: float  # root-mean-square joint distance to the nearest reference pose
    nearest_p90_mm: float
    valid: float | None  # share of proposals that passed the checks; None: not a drawn set


def pose_features(
    rotations: Tensor,  # [N, 24, 3, 3] local
    rest_joints: Tensor,  # [24, 3] metres, of the one body that all poses are put on
) -> Floats:  # [N, 69] metres
    """Joints in the pelvis' axes, pelvis at zero. Not differentiable.

    Raises:
        DataError: a rotation is NaN or infinite; the first row is named.
    """
    turned = rotations.detach().cpu().float().clone()
    finite = turned.flatten(1).isfinite().all(1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0, 0])
        raise DataError(
            f"Pose {row} of {len(turned)} holds a value that is not a finite number.",
            "Leave it out, or repair what it was read from.",
        )
    turned[:, 0] = torch.eye(3)
    joints, _ = forward_kinematics(turned, rest_joints.float().expand(len(turned), -1, -1))
    local = (joints - joints[:, :1])[:, 1:]
    return np.asarray(local.flatten(1).double().numpy(), dtype=np.float64)


def measure_poses(
    name: str,
    poses: Floats,  # [N, F] metres, from pose_features
    reference_name: str,
    reference: Floats,  # [M, F]
    valid: float | None = None,
    neighbours: int = NEIGHBOURS,
) -> PoseSetMeasures:
    """All measures of a set against a reference.

    FID and recall depend on how many poses there are: compare sets of one size.

    Raises:
        DataError: NaN or Inf, other features, or a set with no more rows than `neighbours`.
    """
    _check(name, poses, neighbours)
    _check(reference_name, reference, neighbours)
    if poses.shape[1] != reference.shape[1]:
        raise DataError(
            f"Poses of {name!r} have {poses.shape[1]} features, those of {reference_name!r} "
            f"{reference.shape[1]}.",
            "Make both with pose_features.",
        )
    across = cdist(poses, reference)
    joints = poses.shape[1] // 3
    nearest = across.min(1) / np.sqrt(joints) * 1000
    return PoseSetMeasures(
        name=name,
        reference=reference_name,
        poses=len(poses),
        reference_poses=len(reference),
        apd_mm=average_pairwise_distance(poses),
        reference_apd_mm=average_pairwise_distance(reference),
        fid_cm2=frechet_distance(poses, reference) * 1e4,
        precision=float((across <= _radii(reference, neighbours)).any(1).mean()),
        recall=float((across <= _radii(poses, neighbours)[:, None]).any(0).mean()),
        nearest_median_mm=float(np.median(nearest)),
        nearest_p90_mm=float(np.percentile(nearest, 90)),
        valid=valid,
    )


def average_pairwise_distance(
    poses: Floats,  # [N, 3 J] metres, N >= 2
) -> float:  # mm
    """APD: mean over pairs of different rows and over joints of the joints' distance."""
    joints = poses.shape[1] // 3
    means = [pdist(poses[:, 3 * joint : 3 * joint + 3]).mean() for joint in range(joints)]
    return float(np.mean(means)) * 1000


def frechet_distance(
    a: Floats,  # [N, F]
    b: Floats,  # [M, F]
) -> float:  # squared unit of the features
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) (Dowson and Landau 1982; Heusel 2017).

    The trace of the root is taken from the symmetric C_a^(1/2) C_b C_a^(1/2), which has the same
    eigenvalues and stays real when the sets span fewer dimensions than there are.
    """
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    apart = np.square(a.mean(0) - b.mean(0)).sum()
    return float(max(apart + np.trace(cov_a) + np.trace(cov_b) - 2 * shared, 0.0))


def leave_clips_out(
    clips: Mapping[str, Floats],  # clip -> [T, F]
    neighbours: int = NEIGHBOURS,
) -> list[PoseSetMeasures]:
    """The yardstick: each clip against all others, as if it had been generated.

    A generated set is as likely as unseen motion capture when its distances are like these. Clips
    with no more frames than `neighbours` are part of the reference only.

    Raises:
        DataError: fewer than two clips.
    """
    if len(clips) < 2:
        raise DataError("One clip cannot be left out of itself.", "Name two or more source clips.")
    return [
        measure_poses(
            f"{YARDSTICK} {name}",
            frames,
            "other source clips",
            np.concatenate([other for key, other in clips.items() if key != name]),
            neighbours=neighbours,
        )
        for name, frames in clips.items()
        if len(frames) > neighbours
    ]


def pose_set_table(measures: list[PoseSetMeasures]) -> pd.DataFrame:
    """A row a set and reference; the columns are the fields of `PoseSetMeasures`."""
    return pd.DataFrame([asdict(one) for one in measures])


def beside_yardstick(
    table: pd.DataFrame,  # from pose_set_table
    column: str = "nearest_median_mm",
    reference: str = "source",
) -> dict[str, float]:  # set -> share in 0..1
    """Which share of left-out clips lies at least as far from the rest as a set from the source.

    0.5: as far as the median unseen clip; 0: farther than all of them; 1: nearer than all. Only
    distances (`nearest_…`, `fid_cm2`) can be placed so.
    """
    names = table["name"].astype(str)
    unseen = table.loc[names.str.startswith(YARDSTICK), column].to_numpy(dtype=float)
    drawn = table[(table["reference"] == reference) & ~names.str.startswith(YARDSTICK)]
    if not len(unseen):
        return {}
    return {
        str(name): float((unseen >= value).mean())
        for name, value in zip(drawn["name"], drawn[column], strict=True)
    }


def _radii(rows: Floats, neighbours: int) -> Floats:  # [N]
    """Distance of each row to its k-th nearest other row (Kynkäänniemi et al. 2019)."""
    distance = cdist(rows, rows)
    np.fill_diagonal(distance, np.inf)
    return np.asarray(np.partition(distance, neighbours - 1, axis=1)[:, neighbours - 1]) + _SAME


def _check(name: str, rows: Floats, neighbours: int) -> None:
    if rows.ndim != 2 or rows.shape[1] % 3 or len(rows) <= neighbours:
        raise DataError(
            f"{name!r} of shape {rows.shape} is too small, or no table of joints: {neighbours} "
            f"neighbours need {neighbours + 1} or more rows of x, y, z.",
            "Give more poses, or fewer neighbours.",
        )
    finite = np.isfinite(rows).all(1)
    if not finite.all():
        raise DataError(
            f"Pose {int((~finite).argmax())} of {name!r} holds NaN or Inf.", "Leave it out."
        )

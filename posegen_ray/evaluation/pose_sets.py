"""How a set of poses stands to real ones: realism, variety, novelty, always told together.

A pose is seen as its joints in the pelvis' own frame, of one fixed skeleton: the body's heading and
orientation, its place and its size do not count. One number alone misleads: copies of one real pose
have perfect precision, noise has perfect recall.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy.spatial import cKDTree
from scipy.spatial.distance import pdist
from torch import Tensor

from posegen_ray.body.model import forward_kinematics
from posegen_ray.errors import DataError
from posegen_ray.seeding import numpy_stream

NEIGHBOURS = 3  # of the manifolds of precision and recall
MOST = 2000  # rows of a set that are compared; more are thinned out at random

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PoseSetMeasures:
    """A set of poses against a set of real ones. Distances are means over the 23 joints, in mm.

    `nearest` and `apd` use Euclidean distances of joints; `fid` is the Frechet distance (Heusel et
    al. 2017) of Gaussians fitted to the joints' coordinates, in mm; precision and recall are those
    of Kynkaanniemi et al. 2019: the share of these poses among the real ones' neighbourhoods, and
    the other way round.
    """

    count: int
    apd_mm: float  # average pairwise distance: variety
    fid_mm: float  # root of the Frechet distance, per joint
    precision: float
    recall: float
    nearest_mm: float  # median distance to the nearest real pose
    nearest_p90_mm: float


def pose_set_measures(
    poses: Tensor,  # [N, 24, 3, 3] local rotations
    real: Tensor,  # [M, 24, 3, 3]
    rest_joints: Tensor,  # [24, 3] metres
    seed: int = 0,
) -> PoseSetMeasures:
    """Compares a set of poses with a set of real ones.

    Raises:
        DataError: a set has too few poses for the neighbourhoods, or NaN.
    """
    a = _thinned(joint_features(poses, rest_joints), seed, "poses")
    b = _thinned(joint_features(real, rest_joints), seed, "real")
    joints = a.shape[1] // 3
    nearest = np.array([_joint_distances(row, b).min() for row in a])
    pairs = _mean_pairwise(a, seed)
    return PoseSetMeasures(
        count=len(poses),
        apd_mm=pairs,
        fid_mm=float(np.sqrt(frechet_distance(a, b) / joints)),
        precision=share_within(a, b),
        recall=share_within(b, a),
        nearest_mm=float(np.median(nearest)),
        nearest_p90_mm=float(np.percentile(nearest, 90)),
    )


def left_out(
    clips: Mapping[str, Tensor],  # name -> [N, 24, 3, 3] local rotations
    rest_joints: Tensor,  # [24, 3] metres
) -> pd.DataFrame:
    """Each clip against all others: how far a new real motion is from those that are known.

    The yardstick for generated poses: as far as this is new, farther is not like real motion.
    One row a clip: clip, and the fields of PoseSetMeasures.
    """
    rows = []
    for name, poses in clips.items():
        others = torch.cat([other for key, other in clips.items() if key != name])
        rows.append({"clip": name, **asdict(pose_set_measures(poses, others, rest_joints))})
    return pd.DataFrame(rows)


def joint_features(
    rotations: Tensor,  # [N, 24, 3, 3] local
    rest_joints: Tensor,  # [24, 3] metres
) -> Floats:  # [N, 69] mm
    """The joints but the pelvis in the pelvis' own axes."""
    local = rotations.detach().cpu().double().clone()
    if not bool(torch.isfinite(local).all()):
        raise DataError("The poses to compare contain NaN or Inf.", "Drop those poses first.")
    local[:, 0] = torch.eye(3, dtype=local.dtype)
    rest = (rest_joints.cpu().double() - rest_joints[0].cpu().double()).expand(len(local), -1, -1)
    joints, _ = forward_kinematics(local, rest)
    return np.asarray(1000 * (joints[:, 1:] - joints[:, :1]).flatten(1).numpy(), dtype=np.float64)


def frechet_distance(
    a: Floats,  # [N, F]
    b: Floats,  # [M, F]
) -> float:
    """Between Gaussians with the sets' means and covariances.

    The trace of the product's root comes from eigenvalues of a symmetric matrix, which stays right
    where covariances are singular (few poses, joints that never move).
    """
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    mean = np.square(a.mean(0) - b.mean(0)).sum()
    return float(max(mean + np.trace(cov_a) + np.trace(cov_b) - 2 * cross, 0.0))


def share_within(
    points: Floats,  # [N, F]
    of: Floats,  # [M, F]
    neighbours: int = NEIGHBOURS,
) -> float:
    """Share of points that lie inside a ball of the other set: about each of its points, as wide as
    to that point's k-th neighbour in its own set."""
    if len(of) <= neighbours:
        raise DataError(
            f"{len(of)} poses are too few for neighbourhoods of {neighbours}.",
            f"Give more than {neighbours} poses.",
        )
    radius = cKDTree(of).query(of, neighbours + 1)[0][:, -1]
    inside = [
        bool((np.square(of - point).sum(1) <= np.square(radius) * (1 + 1e-9)).any())
        for point in points
    ]
    return float(np.mean(inside))


def _joint_distances(
    pose: Floats,  # [F]
    others: Floats,  # [M, F]
) -> Floats:  # [M] mm
    apart = (others - pose).reshape(len(others), -1, 3)
    return np.asarray(np.sqrt(np.square(apart).sum(-1)).mean(-1), dtype=np.float64)


def _mean_pairwise(features: Floats, seed: int, most: int = 500) -> float:
    """Mean distance of joints over all pairs of (some of) the poses."""
    some = _thinned(features, seed, "pairs", most)
    if len(some) < 2:
        return 0.0
    total = np.zeros(len(some) * (len(some) - 1) // 2)
    for joint in range(some.shape[1] // 3):
        total += pdist(some[:, 3 * joint : 3 * joint + 3])
    return float(total.mean() / (some.shape[1] // 3))


def _thinned(features: Floats, seed: int, name: str, most: int = MOST) -> Floats:
    if len(features) <= most:
        return features
    rows = numpy_stream(seed, "pose_sets", name).choice(len(features), most, replace=False)
    return features[np.sort(rows)]

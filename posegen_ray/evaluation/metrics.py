"""Errors between predicted and true joints, batched. Knows nothing of test sets, arms or files.

Inputs are metres (2D: pixels), results are millimetres or percent. Computed in float64 on the
device of the tensors; meant for measuring, not for training (nothing here needs a gradient).

Joint sets are given by their names; without names they are the 12 limb joints of the skeleton,
compared with the middle between the hips at zero.

Shapes: N samples, J joints (12 unless names are given), V vertices.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from posegen_ray.body.skeleton import LIMB_JOINT_NAMES
from posegen_ray.errors import DataError

MID_HIP = "mid_hip"  # the root that is no joint: halfway between left_hip and right_hip
PCK_THRESHOLD_MM = 150.0
AUC_THRESHOLDS_MM = tuple(float(mm) for mm in range(0, 151, 5))  # linspace(0, 150, 31)
PCKH_THRESHOLD = 0.5  # of the head's length
_EXTENT_EPSILON = 1e-9  # metres: a skeleton smaller than this is a single point
_NAMED_ROWS = 5  # rows that an error lists


def checked_joints(
    joints: Tensor,  # [N, J, 3]
    name: str,
    count: int | None = len(LIMB_JOINT_NAMES),  # J; None: any
) -> Tensor:  # [N, J, 3] float64, detached
    """The joints in float64, or DataError when the shape is wrong or a value is not finite."""
    if joints.ndim != 3 or joints.shape[2] != 3 or joints.shape[1] != (count or joints.shape[1]):
        raise DataError(
            f"{name} has shape {tuple(joints.shape)}, not [N, {count or 'J'}, 3].",
            "Give metres, one row a joint; the 12 limb joints are those of "
            "skeleton.LIMB_JOINT_NAMES.",
        )
    _require_finite(joints, name)
    return joints.detach().double()


def root_rows(names: Sequence[str], root: str) -> list[int]:
    """The joints whose mean is the root: one, or the two hips for MID_HIP.

    Raises:
        DataError: the joint set has no such joint.
    """
    wanted = ("left_hip", "right_hip") if root == MID_HIP else (root,)
    missing = [name for name in wanted if name not in names]
    if missing:
        raise DataError(
            f"The joint set has no {missing[0]!r} to be centred at.",
            f"Choose {MID_HIP} or one of {', '.join(names)}.",
        )
    return [list(names).index(name) for name in wanted]


def centred(
    joints: Tensor,  # [N, J, 3]
    names: Sequence[str] = LIMB_JOINT_NAMES,
    root: str = MID_HIP,
) -> Tensor:  # [N, J, 3]
    """The joints with the root at zero."""
    return joints - joints[:, root_rows(names, root)].mean(1, keepdim=True)


def joint_errors(
    predicted: Tensor,  # [N, J, 3] metres
    truth: Tensor,  # [N, J, 3] metres
    names: Sequence[str] = LIMB_JOINT_NAMES,
    root: str = MID_HIP,
) -> Tensor:  # [N, J] mm
    """Distance of each joint from the truth, both with their root at zero.

    Raises:
        DataError: wrong shape, different lengths, NaN or Inf, or the set lacks the root.
    """
    predicted, truth = _pair(predicted, truth, len(names))
    return _distances_mm(centred(predicted, names, root), centred(truth, names, root))


def mpjpe(
    predicted: Tensor,  # [N, J, 3] metres
    truth: Tensor,  # [N, J, 3] metres
    names: Sequence[str] = LIMB_JOINT_NAMES,
    root: str = MID_HIP,
) -> Tensor:  # [N] mm
    """Mean per-joint position error of each sample, with the root at zero."""
    return joint_errors(predicted, truth, names, root).mean(1)


def procrustes_align(
    predicted: Tensor,  # [N, J, 3] metres, any joints
    truth: Tensor,  # [N, J, 3] metres
) -> Tensor:  # [N, J, 3] metres
    """The predictions moved onto the truth by the best similarity transform of each sample.

    Least squares over rotation, translation and scale >= 0 (Umeyama 1991, eq. 40-42). The rotation
    is a proper one: a mirrored prediction stays mirrored, and keeps its error. A prediction that is
    a single point lands on the truth's centroid (scale 0).
    """
    predicted, truth = _pair(predicted, truth)
    truth_mean = truth.mean(1, keepdim=True)
    source = predicted - predicted.mean(1, keepdim=True)
    target = truth - truth_mean
    u, singular, vh = torch.linalg.svd(target.transpose(1, 2) @ source)
    signs = torch.ones_like(singular)
    signs[:, 2] = torch.sign(torch.linalg.det(u) * torch.linalg.det(vh))
    rotation = u @ (signs[:, :, None] * vh)
    spread = source.square().sum((1, 2))
    is_point = spread < _EXTENT_EPSILON**2
    # mirrored planar data can make the sum a rounding error below zero
    scale = (singular * signs).sum(1).clamp_min(0) / spread.masked_fill(is_point, 1.0)
    scale = scale.masked_fill(is_point, 0.0)
    aligned: Tensor = scale[:, None, None] * source @ rotation.transpose(1, 2) + truth_mean
    return aligned


def aligned_errors(
    predicted: Tensor,  # [N, J, 3] metres, any joints
    truth: Tensor,  # [N, J, 3] metres
) -> Tensor:  # [N, J] mm
    """Distance of each joint after the best similarity transform (Procrustes) of each sample."""
    return _distances_mm(procrustes_align(predicted, truth), truth.detach())


def pa_mpjpe(
    predicted: Tensor,  # [N, J, 3] metres, any joints
    truth: Tensor,  # [N, J, 3] metres
) -> Tensor:  # [N] mm
    """Mean per-joint error after the best similarity transform (Procrustes) of each sample."""
    return aligned_errors(predicted, truth).mean(1)


def pve(
    predicted: Tensor,  # [N, V, 3] metres
    truth: Tensor,  # [N, V, 3] metres
    predicted_root: Tensor,  # [N, 3] metres, what is at zero for MPJPE
    truth_root: Tensor,  # [N, 3]
) -> Tensor:  # [N] mm
    """Mean per-vertex error of each sample, both meshes with their root at zero."""
    predicted, truth = _pair(predicted, truth)
    return _distances_mm(
        predicted - predicted_root.detach().double()[:, None],
        truth - truth_root.detach().double()[:, None],
    ).mean(1)


def pck(
    errors: Tensor,  # [N, J] mm, from joint_errors
    threshold: float = PCK_THRESHOLD_MM,
) -> Tensor:  # [N] percent
    """Percentage of each sample's joints that lie closer to the truth than the threshold (mm)."""
    return 100 * (errors < threshold).double().mean(1)


def auc(
    errors: Tensor,  # [N, J] mm, from joint_errors
) -> Tensor:  # [N] percent
    """Area under the PCK curve: its mean over 31 thresholds, 0 to 150 mm (Mehta et al. 2017)."""
    thresholds = torch.tensor(AUC_THRESHOLDS_MM, dtype=errors.dtype, device=errors.device)
    return 100 * (errors[:, :, None] < thresholds).double().mean((1, 2))


def pckh(
    predicted: Tensor,  # [N, J, 2] pixels
    truth: Tensor,  # [N, J, 2] pixels
    head_length: Tensor,  # [N] pixels; MPII's: 0.6 times the diagonal of the head's box
    visible: Tensor,  # [N, J] bool: joints that are annotated
    threshold: float = PCKH_THRESHOLD,
) -> Tensor:  # [N] percent
    """Percentage of each picture's annotated joints that are no farther from the truth than the
    threshold times the head's length (Andriluka et al. 2014).

    A test set's PCKh is over joints, not pictures: weigh the results by `visible.sum(1)`.

    Raises:
        DataError: shapes that differ, an annotated joint that is not finite, a picture without
            annotated joints or whose head has no length.
    """
    if not predicted.shape == truth.shape == (*visible.shape, 2):
        raise DataError(
            f"Predictions {tuple(predicted.shape)}, truth {tuple(truth.shape)} and visibility "
            f"{tuple(visible.shape)} do not belong together.",
            "Give [N, J, 2], [N, J, 2] and [N, J].",
        )
    for points, name in ((predicted, "predictions"), (truth, "truth")):
        _require_finite(points.where(visible[..., None], 0.0), name)
    _require_rows(visible.any(1), "no annotated joint")
    _require_rows(head_length > 0, "a head without length")
    distances = torch.linalg.vector_norm(predicted.double() - truth.double(), dim=-1)
    hits = (distances <= threshold * head_length.double()[:, None]) & visible
    share: Tensor = hits.sum(1) / visible.sum(1)
    return 100 * share


def worst_decile(
    errors: Tensor,  # [N] mm
) -> float:  # mm
    """Mean of the largest tenth of the errors (at least one of them)."""
    if len(errors) == 0:
        raise DataError("The worst decile of no errors is asked for.", "Give at least one sample.")
    count = -(-len(errors) // 10)
    return float(errors.topk(count).values.mean())


def _distances_mm(a: Tensor, b: Tensor) -> Tensor:
    distances: Tensor = 1000 * torch.linalg.vector_norm(a - b, dim=-1)
    return distances


def _pair(predicted: Tensor, truth: Tensor, count: int | None = None) -> tuple[Tensor, Tensor]:
    truth = checked_joints(truth, "truth", count)
    predicted = checked_joints(predicted, "predictions", truth.shape[1])
    if len(predicted) != len(truth):
        raise DataError(
            f"There are {len(predicted)} predictions for {len(truth)} samples.",
            "Predict every sample of the test set once, in its order.",
        )
    return predicted, truth


def _require_finite(points: Tensor, name: str) -> None:
    bad = ~torch.isfinite(points).flatten(1).all(1)
    if bad.any():
        raise DataError(
            f"{name} has NaN or Inf in {int(bad.sum())} of {len(points)} samples "
            f"(first: {_listed(bad)}).",
            "Errors over the rest would flatter the estimator: find out why it diverged there, "
            "or leave those rows out of every arm.",
        )


def _require_rows(good: Tensor, what: str) -> None:
    if not good.all():
        raise DataError(
            f"{int((~good).sum())} of {len(good)} pictures have {what} (first: {_listed(~good)}).",
            "Leave those pictures out.",
        )


def _listed(bad: Tensor) -> str:
    return ", ".join(map(str, torch.nonzero(bad)[:_NAMED_ROWS, 0].tolist()))

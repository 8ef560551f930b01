"""Errors between predicted and true joints, batched. Knows nothing of test sets, arms or files.

Inputs are metres, results are millimetres or percent. Every function centres both skeletons between
the hips first, so a constant offset never counts. Computed in float64; meant for measuring, not for
training (nothing here needs a gradient).

Shapes: N samples, 12 limb joints in the order of `skeleton.LIMB_JOINT_NAMES`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from posegen_ray.body.skeleton import LIMB_JOINT_NAMES
from posegen_ray.errors import DataError

PCK_THRESHOLD_MM = 150.0
AUC_THRESHOLDS_MM = tuple(float(mm) for mm in range(0, 151, 5))  # linspace(0, 150, 31)
_HIPS = [LIMB_JOINT_NAMES.index("left_hip"), LIMB_JOINT_NAMES.index("right_hip")]
_EXTENT_EPSILON = 1e-9  # metres: a skeleton smaller than this is a single point


def checked_joints(
    joints: Tensor,  # [N, 12, 3]
    name: str,
) -> Tensor:  # [N, 12, 3] float64
    """The joints in float64, or DataError when the shape is wrong or a value is not finite."""
    expected = (len(LIMB_JOINT_NAMES), 3)
    if joints.ndim != 3 or tuple(joints.shape[1:]) != expected:
        raise DataError(
            f"{name} has shape {tuple(joints.shape)}, not [N, {expected[0]}, {expected[1]}].",
            "Give the 12 limb joints in metres, in the order of skeleton.LIMB_JOINT_NAMES.",
        )
    bad = ~torch.isfinite(joints).flatten(1).all(1)
    if bad.any():
        rows = torch.nonzero(bad)[:, 0].tolist()
        raise DataError(
            f"{name} has NaN or Inf in {len(rows)} of {len(joints)} samples (first: {rows[0]}).",
            "Errors over the rest would flatter the estimator: find out why it diverged there, "
            "or leave those rows out of every arm.",
        )
    return joints.detach().to("cpu", torch.float64)


def hip_centred(
    joints: Tensor,  # [N, 12, 3]
) -> Tensor:  # [N, 12, 3]
    """The joints with the middle between the hips at zero."""
    return joints - joints[:, _HIPS].mean(1, keepdim=True)


def joint_errors(
    predicted: Tensor,  # [N, 12, 3] metres
    truth: Tensor,  # [N, 12, 3] metres
) -> Tensor:  # [N, 12] mm
    """Distance of each hip-centred joint from the truth.

    Raises:
        DataError: wrong shape, different lengths, NaN or Inf.
    """
    predicted, truth = _pair(predicted, truth)
    return _distances_mm(hip_centred(predicted), hip_centred(truth))


def mpjpe(
    predicted: Tensor,  # [N, 12, 3] metres
    truth: Tensor,  # [N, 12, 3] metres
) -> Tensor:  # [N] mm
    """Mean per-joint position error of each sample, hip-centred."""
    return joint_errors(predicted, truth).mean(1)


def procrustes_align(
    predicted: Tensor,  # [N, 12, 3] metres
    truth: Tensor,  # [N, 12, 3] metres
) -> Tensor:  # [N, 12, 3] metres
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


def pa_mpjpe(
    predicted: Tensor,  # [N, 12, 3] metres
    truth: Tensor,  # [N, 12, 3] metres
) -> Tensor:  # [N] mm
    """Mean per-joint error after the best similarity transform (Procrustes) of each sample."""
    aligned = procrustes_align(predicted, truth)
    return _distances_mm(aligned, truth.detach().cpu()).mean(1)


def pck(
    errors: Tensor,  # [N, 12] mm, from joint_errors
    threshold: float = PCK_THRESHOLD_MM,
) -> Tensor:  # [N] percent
    """Percentage of each sample's joints that lie closer to the truth than the threshold (mm)."""
    return 100 * (errors < threshold).double().mean(1)


def auc(
    errors: Tensor,  # [N, 12] mm, from joint_errors
) -> Tensor:  # [N] percent
    """Area under the PCK curve: its mean over 31 thresholds, 0 to 150 mm (Mehta et al. 2017)."""
    thresholds = torch.tensor(AUC_THRESHOLDS_MM, dtype=errors.dtype, device=errors.device)
    return 100 * (errors[:, :, None] < thresholds).double().mean((1, 2))


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


def _pair(predicted: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    predicted, truth = checked_joints(predicted, "predictions"), checked_joints(truth, "truth")
    if len(predicted) != len(truth):
        raise DataError(
            f"There are {len(predicted)} predictions for {len(truth)} samples.",
            "Predict every sample of the test set once, in its order.",
        )
    return predicted, truth

"""Rotations: matrices inside, 6D at network outputs, axis-angle (and quaternions) only in files.

Column-vector convention: `x_parent = R @ x_child`. All functions take any leading dimensions, are
differentiable, and run batched on the device of their input. The conversions are roma's; this
module fixes the conventions in one place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def from_6d(
    x: Tensor,  # [..., 6]
) -> Tensor:  # [..., 3, 3]
    """Continuous 6D representation (Zhou et al. 2019): the first two columns, orthonormalised.

    Element order: (a1, a2), each a 3-vector; a1 becomes the first column. Undefined (NaN-free but
    arbitrary) where the two vectors are parallel.
    """
    columns = x.unflatten(-1, (2, 3)).transpose(-1, -2)
    result: Tensor = _roma().special_gramschmidt(columns)
    return result


def to_6d(
    rotation: Tensor,  # [..., 3, 3]
) -> Tensor:  # [..., 6]
    """Inverse of `from_6d`."""
    return rotation[..., :2].transpose(-1, -2).flatten(-2)


def from_axis_angle(
    x: Tensor,  # [..., 3] radians
) -> Tensor:  # [..., 3, 3]
    """Axis-angle (SMPL files) to matrix."""
    result: Tensor = _roma().rotvec_to_rotmat(x)
    return result


def to_axis_angle(
    rotation: Tensor,  # [..., 3, 3]
) -> Tensor:  # [..., 3]
    """Matrix to axis-angle in radians, angle in [0, pi]."""
    result: Tensor = _roma().rotmat_to_rotvec(rotation)
    return result


def from_quaternion_wxyz(
    x: Tensor,  # [..., 4]
) -> Tensor:  # [..., 3, 3]
    """Quaternion (w, x, y, z), not necessarily of unit length, to matrix."""
    xyzw = torch.cat([x[..., 1:], x[..., :1]], -1)
    result: Tensor = _roma().unitquat_to_rotmat(xyzw / xyzw.norm(dim=-1, keepdim=True))
    return result


def geodesic_angle(
    a: Tensor,  # [..., 3, 3]
    b: Tensor,  # [..., 3, 3]
) -> Tensor:  # [...] radians
    """Angle of the rotation that takes a to b, in [0, pi]."""
    result: Tensor = _roma().rotmat_geodesic_distance(a, b)
    return result


def between(
    a: Tensor,  # [..., 3]
    b: Tensor,  # [..., 3]
) -> Tensor:  # [..., 3, 3]
    """The smallest rotation that turns direction a into direction b (not opposite ones)."""
    a = a / a.norm(dim=-1, keepdim=True)
    b = b / b.norm(dim=-1, keepdim=True)
    v = torch.linalg.cross(a, b)
    skew = hat(v)
    cosine = (a * b).sum(-1)[..., None, None]
    eye = torch.eye(3, dtype=a.dtype, device=a.device)
    return eye + skew + skew @ skew / (1 + cosine)


def hat(
    v: Tensor,  # [..., 3]
) -> Tensor:  # [..., 3, 3]
    """Cross-product matrix: hat(v) @ x = v x x."""
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack(
        [
            torch.stack([zero, -z, y], -1),
            torch.stack([z, zero, -x], -1),
            torch.stack([-y, x, zero], -1),
        ],
        -2,
    )


def about_axis(
    axis: int,
    angle: Tensor,  # [...] radians
) -> Tensor:  # [..., 3, 3]
    """Rotation by `angle` about the coordinate axis 0 (x), 1 (y) or 2 (z)."""
    rotvec = torch.zeros(*angle.shape, 3, dtype=angle.dtype, device=angle.device)
    rotvec = torch.cat(
        [angle[..., None] if i == axis else rotvec[..., i : i + 1] for i in range(3)], -1
    )
    return from_axis_angle(rotvec)


def _roma() -> Any:
    """roma, imported when it is first needed: it brings torch's compiler along, seconds and 150 MB
    in every process, and render servers need neither."""
    import roma

    return roma

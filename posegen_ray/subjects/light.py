"""The light that a person is seen in: distant, the same from everywhere, from any direction.

How bright a matt surface is under it is a quadratic function of the surface's normal (Ramamoorthi
and Hanrahan 2001, eq. 12): h^T L h, where h = (normal, 1) and L is a symmetric 4 x 4 matrix. These
are the spherical harmonics up to order two in another form. What shines adds the same of the
direction in which the surface mirrors the camera, with a matrix of its own: that part depends on
the view. No shadows are cast.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from posegen_ray.body.camera import Camera


def even_light() -> Tensor:  # [2, 4, 4]
    """Everything as bright as its colour, seen from anywhere."""
    light = torch.zeros(2, 4, 4)
    light[0, 3, 3] = 1.0
    return light


def brightness(
    light: Tensor,  # [2, 4, 4] or [B, 2, 4, 4] matt and shining, world axes
    normals: Tensor,  # [B, V, 3] unit, world
    towards: Tensor | None = None,  # [B, V, 3] unit, world: where the camera is; None: all is matt
) -> Tensor:  # [B, V]
    """What a white surface with these normals reflects. Differentiable in everything."""
    lit = _quadratic(light[..., 0, :, :], normals)
    if towards is not None:
        mirrored = 2 * (normals * towards).sum(-1, keepdim=True) * normals - towards
        lit = lit + _quadratic(light[..., 1, :, :], mirrored)
    return lit


def _quadratic(
    matrix: Tensor,  # [4, 4] or [B, 4, 4]
    directions: Tensor,  # [B, V, 3]
) -> Tensor:  # [B, V]
    extended = pad(directions, (0, 1), value=1.0)
    values: Tensor = (extended @ matrix * extended).sum(-1)
    return values


def towards_camera(
    points: Tensor,  # [B, V, 3] camera space
    camera: Camera,
) -> Tensor:  # [B, V, 3] unit, world
    """Where the camera is, seen from each point. Differentiable in both."""
    return normalize(-points, dim=-1) @ camera.rotation

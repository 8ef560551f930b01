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
from torch.nn.functional import normalize

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


def changed_light(
    light: Tensor,  # [2, 4, 4] that the subject was filmed in
    change: Tensor,  # [B, 3] turn (radians), contrast, exposure: see `RenderRequest.light`
) -> Tensor:  # [B, 2, 4, 4]
    """The light turned about the world's up axis, its differences between directions and then all
    of it made so many times as strong. Differentiable in both."""
    turn, contrast, exposure = change.unbind(-1)
    zero, one = torch.zeros_like(turn), torch.ones_like(turn)
    cosine, sine = turn.cos(), turn.sin()
    rows = [
        [cosine, zero, sine, zero],
        [zero, one, zero, zero],
        [-sine, zero, cosine, zero],
        [zero, zero, zero, one],
    ]
    turned = torch.stack([torch.stack(row, -1) for row in rows], -2)[:, None]
    # the mean of h^T L h over all directions; the quadratic part's is a third of its trace
    mean = light[:, 3, 3] + light.diagonal(dim1=1, dim2=2)[:, :3].sum(-1) / 3
    even = mean[:, None, None] * even_light()[:1].to(light)
    light = turned @ light @ turned.transpose(-1, -2)
    return exposure[:, None, None, None] * (even + contrast[:, None, None, None] * (light - even))


def _quadratic(
    matrix: Tensor,  # [4, 4] or [B, 4, 4]
    directions: Tensor,  # [B, V, 3]
) -> Tensor:  # [B, V]
    linear = (matrix[..., 3, :3] + matrix[..., :3, 3]).unsqueeze(-2)
    values: Tensor = ((directions @ matrix[..., :3, :3] + linear) * directions).sum(-1)
    return values + matrix[..., 3, 3].unsqueeze(-1)


def towards_camera(
    points: Tensor,  # [B, V, 3] camera space
    camera: Camera,
) -> Tensor:  # [B, V, 3] unit, world
    """Where the camera is, seen from each point. Differentiable in both."""
    return normalize(-points, dim=-1) @ camera.rotation

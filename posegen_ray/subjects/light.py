"""The light that a person is seen in: distant, the same from everywhere, from any direction.

How bright a matt surface is under it is a quadratic function of the surface's normal (Ramamoorthi
and Hanrahan 2001, eq. 12): h^T L h, where h = (normal, 1) and L is a symmetric 4 x 4 matrix. These
are the spherical harmonics up to order two in another form. No shadows are cast.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def even_light() -> Tensor:  # [4, 4]
    """Everything as bright as its colour."""
    return torch.diag(torch.tensor([0.0, 0.0, 0.0, 1.0]))


def brightness(
    light: Tensor,  # [4, 4] or [B, 4, 4], world axes
    normals: Tensor,  # [B, V, 3] unit, world
) -> Tensor:  # [B, V]
    """What a white surface with these normals reflects. Differentiable in both."""
    extended = pad(normals, (0, 1), value=1.0)
    lit: Tensor = (extended @ light * extended).sum(-1)
    return lit

"""Whether what touches the ground can carry a body. Knows nothing about cameras or rendering.

Bodies are the capsules of `posegen_ray.generation.validity`; B is the batch, C the capsules.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_TOUCHES = 0.06  # metres: what is so little above the lowest point stands on the ground, too
_DIRECTIONS = 180  # in which a body may topple


def overhang(
    start: Tensor,  # [B, C, 3] metres, world: axes of the capsules
    end: Tensor,  # [B, C, 3]
    radii: Tensor,  # [B or 1, C] metres
    mass: Tensor,  # [C] shares of the body's mass
) -> Tensor:  # [B] metres
    """How far the centre of mass lies beside the convex hull of what touches the ground, seen from
    above; 0 for a body that can stand (or lie) still. Who jumps or falls overhangs.

    The hull's distance is the largest over directions of the centre's lead over all that carries
    it; with one direction in two degrees it is too small by at most 2 % of the hull's edges.
    """
    ends = torch.stack([start, end], 2).flatten(1, 2)  # [B, 2 C, 3]
    wide = radii.repeat_interleave(2, 1).expand(len(ends), -1)
    bottom = ends[..., 1] - wide
    touches = bottom <= bottom.amin(1, keepdim=True) + _TOUCHES
    centre = (0.5 * (start + end) * mass[:, None]).sum(1) / mass.sum()
    angle = 2 * math.pi * torch.arange(_DIRECTIONS).to(start) / _DIRECTIONS
    ways = torch.stack([angle.cos(), angle.sin()])  # [2, K]
    reach = ends[..., [0, 2]] @ ways + wide[..., None]  # [B, 2 C, K]
    reach = reach.masked_fill(~touches[..., None], -math.inf).amax(1)
    lead = centre[:, [0, 2]] @ ways - reach
    return lead.amax(1).clamp_min(0)

"""How far made-up poses are from real ones. Knows nothing about cameras or rendering."""

from __future__ import annotations

import torch
from torch import Tensor

from posegen_ray.body.model import BodyModel, forward_kinematics
from posegen_ray.body.rotation import about_axis
from posegen_ray.generation.proposal import facing


@torch.no_grad()
def nearest_pose_distance(
    rotations: Tensor,  # [B, 24, 3, 3]
    real: Tensor,  # [N, 24, 3, 3]
    body: BodyModel,
    shape: Tensor,  # [S] the shape that all poses are put on
) -> Tensor:  # [B] mm
    """Root-mean-square distance of the joints to those of the nearest real pose.

    Poses are compared on one shape, with the pelvis in one place and facing one way: heading and
    place in the world do not count, falling over does.
    """
    places = [_upright_joints(part, body, shape) for part in (rotations, real)]
    return torch.cdist(places[0], places[1]).amin(1) / 24**0.5 * 1000


def _upright_joints(rotations: Tensor, body: BodyModel, shape: Tensor) -> Tensor:  # [B, 72]
    root = about_axis(1, -facing(rotations)) @ rotations[:, 0]
    turned = torch.cat([root[:, None], rotations[:, 1:]], 1)
    rest = body.rest_joints(shape[None]).expand(len(turned), -1, -1)
    joints, _ = forward_kinematics(turned, rest)
    return (joints - joints[:, :1]).flatten(1)

"""Small changes of a labelled crop that keep its label exact.

Mirroring, turning about the optical axis, scaling about the middle, colour. Knows nothing of
networks.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from posegen_ray.body.rotation import about_axis
from posegen_ray.body.skeleton import LIMB_JOINT_NAMES, mirrored

_SWAP = list(mirrored(LIMB_JOINT_NAMES))
_MAX_TURN = math.radians(15)
_MAX_LOG_SCALE = 0.12
_MAX_GAIN = 0.2  # of each colour channel
_MAX_CONTRAST = 0.3  # of the logarithm of gamma


def mirror(
    images: Tensor,  # [B, 3, S, S] in [0, 1]
    joints: Tensor,  # [B, 12, 3] metres, mid-hip at 0, crop-camera axes
) -> tuple[Tensor, Tensor]:
    """The same people seen in a mirror: left and right change places."""
    return images.flip(-1), joints[:, _SWAP] * joints.new_tensor([-1, 1, 1])


def augment(
    images: Tensor,  # [B, 3, S, S] in [0, 1]
    joints: Tensor,  # [B, 12, 3] metres, mid-hip at 0, crop-camera axes
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Each image mirrored or not, turned, scaled and recoloured at random.

    Turning the crop about its middle turns the label about the optical axis (exact where the
    crop's middle is the principal point, else as exact as the crop itself).
    """
    count = len(images)

    def uniform(limit: float, *shape: int) -> Tensor:
        return (torch.rand(count, *shape, generator=generator) * 2 - 1) * limit

    flip = torch.rand(count, generator=generator) < 0.5
    mirrored_images, mirrored_joints = mirror(images, joints)
    images = torch.where(flip[:, None, None, None], mirrored_images, images)
    joints = torch.where(flip[:, None, None], mirrored_joints, joints)

    turn = about_axis(2, uniform(_MAX_TURN))
    scale = uniform(_MAX_LOG_SCALE).exp()
    # affine_grid maps output to input: the inverse of turning the content by `turn`
    inverse = turn[:, :2, :2].transpose(1, 2) / scale[:, None, None]
    theta = torch.cat([inverse, torch.zeros(count, 2, 1)], -1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    joints = joints @ turn.transpose(1, 2)

    gamma = uniform(_MAX_CONTRAST, 1, 1, 1).exp()
    gain = 1 + uniform(_MAX_GAIN, 3, 1, 1)
    images = (images.clamp(0, 1) ** gamma * gain).clamp(0, 1)
    return images, joints

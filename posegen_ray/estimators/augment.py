"""Small changes of a labelled crop that keep its label exact.

Mirroring, turning about the optical axis, scaling about the middle, colour. Knows nothing of
networks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from posegen_ray.body.rotation import about_axis
from posegen_ray.body.skeleton import JOINT_NAMES, LIMB_JOINT_NAMES, mirrored
from posegen_ray.records import Samples

_SWAP = list(mirrored(LIMB_JOINT_NAMES))
_SWAP_ALL = list(mirrored(JOINT_NAMES))
_MAX_TURN = math.radians(15)
_MAX_LOG_SCALE = 0.12
_MAX_GAIN = 0.2  # of each colour channel
_MAX_CONTRAST = 0.3  # of the logarithm of gamma


@dataclass(frozen=True)
class Labels:
    """What a crop shows, as an estimator should answer it: in the axes of the crop's camera.

    NaN is what is not known.
    """

    joints: Tensor  # [B, 12, 3] metres, mid-hip at 0
    joints_2d: Tensor  # [B, 12, 2] from the crop's middle, as shares of its side
    rotations: Tensor  # [B, 24, 3, 3] local
    shape: Tensor  # [B, S] of the body that the samples show

    def __len__(self) -> int:
        return len(self.joints)

    def __getitem__(self, rows: slice | Tensor) -> Labels:
        return Labels(
            self.joints[rows], self.joints_2d[rows], self.rotations[rows], self.shape[rows]
        )

    def to(self, device: torch.device | str) -> Labels:
        return Labels(
            self.joints.to(device),
            self.joints_2d.to(device),
            self.rotations.to(device),
            self.shape.to(device),
        )


def labels_of(samples: Samples) -> Labels:
    """The samples' labels; their roots, which turn in the world, turn in the camera here."""
    rotations = samples.rotations.float()
    root = samples.camera.rotation.float() @ rotations[:, 0]
    extent = samples.joints_2d.new_tensor([samples.camera.width, samples.camera.height])
    return Labels(
        samples.joints.float(),
        (samples.joints_2d / extent - 0.5).float(),
        torch.cat([root[:, None], rotations[:, 1:]], 1),
        samples.shape.float(),
    )


def mirror(
    images: Tensor,  # [B, 3, S, S] in [0, 1]
    labels: Labels,
) -> tuple[Tensor, Labels]:
    """The same people seen in a mirror: left and right change places. Their shape stays."""
    flip = labels.joints.new_tensor([-1, 1, 1])
    return images.flip(-1), Labels(
        labels.joints[:, _SWAP] * flip,
        labels.joints_2d[:, _SWAP] * flip[:2],
        labels.rotations[:, _SWAP_ALL] * (flip[:, None] * flip),
        labels.shape,
    )


def augment(
    images: Tensor,  # [B, 3, S, S] in [0, 1]
    labels: Labels,
    generator: torch.Generator,
) -> tuple[Tensor, Labels]:
    """Each image mirrored or not, turned, scaled and recoloured at random.

    Turning the crop about its middle turns the label about the optical axis (exact where the
    crop's middle is the principal point, else as exact as the crop itself).
    """
    count = len(images)

    def uniform(limit: float, *shape: int) -> Tensor:
        return (torch.rand(count, *shape, generator=generator) * 2 - 1) * limit

    flip = torch.rand(count, generator=generator) < 0.5
    mirrored_images, mirrored_labels = mirror(images, labels)
    images = torch.where(flip[:, None, None, None], mirrored_images, images)
    joints = torch.where(flip[:, None, None], mirrored_labels.joints, labels.joints)
    places = torch.where(flip[:, None, None], mirrored_labels.joints_2d, labels.joints_2d)
    rotations = torch.where(flip[:, None, None, None], mirrored_labels.rotations, labels.rotations)

    turn = about_axis(2, uniform(_MAX_TURN))
    scale = uniform(_MAX_LOG_SCALE).exp()
    # affine_grid maps output to input: the inverse of turning the content by `turn`
    inverse = turn[:, :2, :2].transpose(1, 2) / scale[:, None, None]
    theta = torch.cat([inverse, torch.zeros(count, 2, 1)], -1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    joints = joints @ turn.transpose(1, 2)
    places = scale[:, None, None] * places @ turn[:, :2, :2].transpose(1, 2)
    root = turn @ rotations[:, 0]
    rotations = torch.cat([root[:, None], rotations[:, 1:]], 1)

    gamma = uniform(_MAX_CONTRAST, 1, 1, 1).exp()
    gain = 1 + uniform(_MAX_GAIN, 3, 1, 1)
    images = (images.clamp(0, 1) ** gamma * gain).clamp(0, 1)
    return images, Labels(joints, places, rotations, labels.shape)

"""What a set of labelled images holds, before a format writes it. Plain numpy, N samples a batch.

Frames and units are those of `posegen_ray.body.camera`: metres, radians, pixels with centres at
+0.5; camera x right, y down, z forward; world y up. The camera is the one whose picture the image
is: a crop has its own intrinsics, and a turned crop its own extrinsics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from posegen_ray.body.rotation import to_axis_angle

Array = NDArray[Any]


@dataclass(frozen=True)
class Labels:
    """All labels of N images, in the order of the images. J = 24: SMPL's joints and their order."""

    joints: Array  # [N, 24, 3] metres, camera coordinates
    joints_2d: Array  # [N, 24, 2] pixels
    rotations: Array  # [N, 24, 3, 3] parent <- joint; the root's is world <- body
    translation: Array  # [N, 3] metres, world; what the body model adds (SMPL's `trans`)
    shape: Array  # [N, S] of the body model
    intrinsics: Array  # [N, 3, 3] camera -> pixels
    extrinsics: Array  # [N, 4, 4] world -> camera
    view: Array  # [N, 3] azimuth (0: seen from the front), elevation, roll; radians
    subject: Array  # [N] names
    clip: Array  # [N] where the pose comes from: a clip's name, or "generated"
    seed: Array  # [N] int64, the seed that drew the sample
    generator: Array  # [N] int32, the version of the generator: how many rounds it had trained

    def __len__(self) -> int:
        return len(self.joints)

    def arrays(self) -> dict[str, Array]:
        """Every field by its name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def concatenate_labels(parts: Sequence[Labels]) -> Labels:
    """One batch from several, in order."""
    names = [field.name for field in fields(Labels)]
    return Labels(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in names})


@dataclass(frozen=True)
class About:
    """What all samples of a set have in common."""

    body: str  # anny | smpl
    gender: str  # of the body model: neutral | male | female
    size: int  # edge of the square images, pixels
    extension: str  # of the image files: png | jpg

    @property
    def is_smpl(self) -> bool:
        """Whether rotations, shape and translation are parameters of SMPL."""
        return self.body == "smpl"


def axis_angles(
    rotations: Array,  # [N, 24, 3, 3]
) -> Array:  # [N, 72] radians
    """SMPL's pose vector."""
    turned = to_axis_angle(torch.from_numpy(rotations).double())
    return turned.flatten(1).float().numpy()


def seen_from_camera(labels: Labels) -> Array:  # [N, 24, 3, 3]
    """The rotations with the root's as camera <- body: R_camera R_root."""
    rotations = labels.rotations.copy()
    rotations[:, 0] = labels.extrinsics[:, :3, :3] @ rotations[:, 0]
    return rotations


def smpl_shape(labels: Labels, about: About) -> Array:  # [N, 10]
    """SMPL's betas; zero where the body isn't SMPL."""
    betas = np.zeros((len(labels), 10), np.float32)
    if about.is_smpl:
        count = min(10, labels.shape.shape[1])
        betas[:, :count] = labels.shape[:, :count]
    return betas

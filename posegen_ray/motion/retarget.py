"""From another skeleton's world orientations to the common skeleton's local rotations.

Readers say how each of *their* body parts is turned in the world away from their rest pose, in our
axes; this module knows what the common skeleton makes of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from posegen_ray.body.rotation import between
from posegen_ray.body.skeleton import JOINT, JOINT_NAMES
from posegen_ray.motion.clips import between_frames, local_from_world

SIDES = ("left", "right")
LIMBS = ("hip", "knee", "ankle", "shoulder", "elbow", "wrist")

# how the collar bone shares the arm's swing away from 45 degrees below the horizontal
_COLLAR_SHARE = 0.2


@dataclass(frozen=True)
class WorldPose:
    """Orientation of body parts in the world, our axes; identity = the T-pose."""

    root: Tensor  # [T, 3, 3]
    chest: Tensor  # [T, 3, 3]
    head: Tensor  # [T, 3, 3]
    limbs: dict[str, Tensor]  # "left_knee" -> [T, 3, 3] and so on: SIDES x LIMBS
    collars: dict[str, Tensor]  # "left_collar" -> [T, 3, 3]; a side that is missing is guessed


def local_rotations(pose: WorldPose) -> Tensor:  # [T, 24, 3, 3]
    """Local rotations of the common skeleton.

    The turn from root to chest is shared evenly by the three spine joints, that from chest to head
    by neck and head. Collars without data take a fifth of the arm's swing. Hands and toes stay
    straight.
    """
    world = [torch.empty(0)] * len(JOINT_NAMES)
    frames = len(pose.root)

    def share(a: Tensor, b: Tensor, part: float) -> Tensor:
        return between_frames(a, b, torch.full((frames,), part))

    world[JOINT["pelvis"]] = pose.root
    for number in (1, 2, 3):
        world[JOINT[f"spine{number}"]] = share(pose.root, pose.chest, number / 3)
    world[JOINT["neck"]] = share(pose.chest, pose.head, 0.5)
    world[JOINT["head"]] = pose.head
    for side in SIDES:
        for limb in LIMBS:
            world[JOINT[f"{side}_{limb}"]] = pose.limbs[f"{side}_{limb}"]
        world[JOINT[f"{side}_foot"]] = pose.limbs[f"{side}_ankle"]
        world[JOINT[f"{side}_hand"]] = pose.limbs[f"{side}_wrist"]
        collar = pose.collars.get(f"{side}_collar")
        if collar is None:
            collar = _guess_collar(side, pose.chest, pose.limbs[f"{side}_shoulder"])
        world[JOINT[f"{side}_collar"]] = collar
    return local_from_world(torch.stack(world, 1))


def _guess_collar(
    side: str,
    chest: Tensor,  # [T, 3, 3]
    upper_arm: Tensor,  # [T, 3, 3]
) -> Tensor:  # [T, 3, 3]
    outwards = torch.tensor([1.0 if side == "left" else -1.0, 0.0, 0.0], dtype=chest.dtype)
    relaxed = outwards - torch.tensor([0.0, 1.0, 0.0], dtype=chest.dtype)
    arm = (chest.transpose(-1, -2) @ upper_arm @ outwards[:, None])[..., 0]
    swing = between(relaxed.expand_as(arm), arm)
    eye = torch.eye(3, dtype=chest.dtype).expand_as(swing)
    return chest @ between_frames(eye, swing, torch.full((len(arm),), _COLLAR_SHARE))

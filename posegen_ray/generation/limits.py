"""Joint limits: how far each joint may bend and twist, as box bounds on swing-twist angles.

Knows nothing about cameras or bodies' shapes. Differentiable.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import roma
import torch
from torch import Tensor

from posegen_ray.body.rotation import from_axis_angle
from posegen_ray.body.skeleton import JOINT, JOINT_NAMES, NUM_JOINTS

# The axis along which each bone leaves its joint in the T-pose: the twist axis.
_ALONG_X = ("collar", "shoulder", "elbow", "wrist", "hand")
TWIST_AXIS: tuple[int, ...] = tuple(
    0 if name.split("_")[-1] in _ALONG_X else 1 for name in JOINT_NAMES
)

# Degrees (low, high) about x, y, z for the midline and the left side; the right side mirrors y, z.
# Generous: textbook ranges of motion and what dancers and acrobats reach. Signs in the T-pose
# (facing +z, left = +x): the hip flexes about -x, the knee about +x; the shoulder lifts about +z
# and swings forward about -y; the elbow flexes about -y.
_ANATOMY: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "hip": ((-140, 45), (-70, 70), (-35, 90)),
    "knee": ((-15, 160), (-20, 20), (-15, 15)),
    "ankle": ((-62, 60), (-58, 58), (-55, 55)),
    "foot": ((-60, 60), (-20, 20), (-20, 20)),
    "spine1": ((-30, 50), (-35, 35), (-30, 30)),
    "spine2": ((-30, 50), (-35, 35), (-30, 30)),
    "spine3": ((-30, 50), (-35, 35), (-30, 30)),
    "neck": ((-50, 50), (-60, 60), (-40, 40)),
    "head": ((-50, 50), (-60, 60), (-40, 40)),
    "collar": ((-35, 35), (-35, 35), (-35, 45)),
    "shoulder": ((-115, 115), (-135, 60), (-100, 100)),
    "elbow": ((-100, 100), (-158, 10), (-25, 25)),
    "wrist": ((-40, 40), (-50, 50), (-85, 85)),
    "hand": ((-30, 30), (-60, 60), (-60, 60)),
}


def swing_twist_angles(
    rotations: Tensor,  # [..., 24, 3, 3], or [..., N, 3, 3] of the joints named
    joints: Tensor | None = None,  # [N] which joint each is
) -> Tensor:  # [..., 24 or N, 3] radians
    """Twist about the bone's own axis, and the rotation vector of the swing about the other two.

    R = swing @ twist. Smooth except where a bone is swung by pi (into its parent).
    """
    quaternion = roma.rotmat_to_unitquat(rotations)  # x, y, z, w
    axis = torch.eye(3, dtype=rotations.dtype, device=rotations.device)[list(TWIST_AXIS)]
    axis = axis if joints is None else axis[joints]
    along = (quaternion[..., :3] * axis).sum(-1)
    real = quaternion[..., 3]
    twist = 2 * torch.atan2(along * real.sign(), real.abs())
    half = twist[..., None] / 2
    twist_quaternion = torch.cat([axis * half.sin(), half.cos()], -1)
    swing = roma.quat_product(quaternion, roma.quat_conjugation(twist_quaternion))
    swing = swing * swing[..., 3:].sign()
    return roma.unitquat_to_rotvec(swing) + twist[..., None] * axis  # type: ignore[no-any-return]


@dataclass(frozen=True)
class JointLimits:
    """Box bounds on `swing_twist_angles`; the root is free."""

    low: Tensor  # [24, 3] radians
    high: Tensor  # [24, 3] radians

    @classmethod
    def anatomical(cls) -> JointLimits:
        """Textbook ranges of motion."""
        low = torch.full((NUM_JOINTS, 3), -math.inf)
        high = torch.full((NUM_JOINTS, 3), math.inf)
        for name, joint in JOINT.items():
            if name == "pelvis":
                continue
            bounds = torch.tensor(_ANATOMY[name.removeprefix("left_").removeprefix("right_")])
            low[joint], high[joint] = bounds.deg2rad().unbind(-1)
            if name.startswith("right_"):
                low[joint, 1:], high[joint, 1:] = -high[joint, 1:], -low[joint, 1:]
        return cls(low, high)

    def widened(
        self,
        rotations: Tensor,  # [N, 24, 3, 3] real poses
        margin: float,  # radians beyond them
    ) -> JointLimits:
        """Bounds that also hold all these poses."""
        angles = swing_twist_angles(rotations)
        return JointLimits(
            torch.minimum(self.low, angles.amin(0) - margin),
            torch.maximum(self.high, angles.amax(0) + margin),
        )

    def excess(
        self,
        rotations: Tensor,  # [B, 24, 3, 3], or [N, 3, 3] of the joints named
        joints: Tensor | None = None,  # [N] which joint each is
    ) -> Tensor:  # [B, 24, 3] or [N, 3] radians beyond the bounds; 0 inside
        """How far each angle is outside. Differentiable."""
        angles = swing_twist_angles(rotations, joints)
        low, high = self.low.to(angles), self.high.to(angles)
        if joints is not None:
            low, high = low[joints], high[joints]
        return (angles - high).clamp_min(0) + (low - angles).clamp_min(0)

    def share_within(
        self,
        rotations: Tensor,  # [B, 24, 3, 3] inside the bounds
        turn: Tensor,  # [B, 24, 3] radians, axis-angle
        halvings: int = 3,
    ) -> Tensor:  # [B, 24] in [0, 1]
        """How much of each turn can be made inside the bounds: all, a half, a quarter, ... none."""
        share = torch.zeros_like(turn[..., 0])
        rows, joints = torch.ones_like(share).nonzero().unbind(1)  # of the turns still too far
        for halving in range(halvings + 1):
            part = 0.5**halving
            turned = rotations[rows, joints] @ from_axis_angle(part * turn[rows, joints])
            outside = (self.excess(turned, joints) > 0).any(-1)
            share[rows[~outside], joints[~outside]] = part
            rows, joints = rows[outside], joints[outside]
        return share

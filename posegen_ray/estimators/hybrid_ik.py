"""Hybrid inverse kinematics (Li et al. 2021, HybrIK): joints, bone lengths and twists -> rotations.

A rotation is a swing, which the joints determine, after a twist about the bone, which they cannot
tell and a network estimates. Works on SMPL's tree with five leaves (head, hands, toes) that give
the last joints a bone. Knows nothing of networks or files.

All of it is differentiable in joints, rest joints and twists, with finite gradients also where a
bone has no length or points the opposite way. (The published code stops the gradients of bone
directions; values agree.) B: batch, K: joints of one level.
"""

from __future__ import annotations

import roma
import torch
from torch import Tensor

from posegen_ray.body.rotation import hat
from posegen_ray.body.skeleton import JOINT, NUM_JOINTS, PARENTS

LEAF_NAMES = ("head_top", "left_middle", "right_middle", "left_bigtoe", "right_bigtoe")
NUM_WITH_LEAVES = NUM_JOINTS + len(LEAF_NAMES)
LEAF_PARENTS = tuple(
    JOINT[name] for name in ("head", "left_hand", "right_hand", "left_foot", "right_foot")
)
PARENTS_WITH_LEAVES = PARENTS + LEAF_PARENTS

SWITCH = 0.015  # metres: beyond it the estimated bone counts, not where its end should be

_EPS = 1e-16  # added to squared lengths


def _children() -> tuple[int, ...]:
    """The joint that each joint's bone leads to; of several children the one along the spine."""
    first: dict[int, int] = {}
    for joint, parent in enumerate(PARENTS_WITH_LEAVES):
        first.setdefault(parent, joint)
    first[JOINT["pelvis"]] = JOINT["spine1"]
    first[JOINT["spine3"]] = JOINT["neck"]
    return tuple(first[joint] for joint in range(NUM_JOINTS))


def _levels() -> tuple[tuple[int, ...], ...]:
    """Joints by their distance from the root, which is left out."""
    depth = [0]
    for parent in PARENTS[1:]:
        depth.append(depth[parent] + 1)
    return tuple(
        tuple(joint for joint in range(NUM_JOINTS) if depth[joint] == level)
        for level in range(1, max(depth) + 1)
    )


CHILDREN = _children()
_LEVELS = _levels()


def inverse_kinematics(
    joints: Tensor,  # [B, 29, 3] metres; where the root is does not matter
    rest: Tensor,  # [B, 29, 3] metres, T-pose of the person's shape
    twist: Tensor,  # [B, 23, 2] (cos, sin) of any length, for all joints but the root
    adaptive: bool,
) -> Tensor:  # [B, 24, 3, 3] local rotations; the root's is that of the joints' axes
    """Rotations that bring the rest joints to the joints, as far as bone lengths allow.

    Args:
        adaptive: each bone aims at the place of its end as estimated, which makes up for the
            errors before it, unless that differs from the estimated bone, brought to length, by
            more than SWITCH (HybrIK at evaluation). Otherwise each bone takes the estimated one's
            direction (HybrIK in training).
    """
    parents = list(PARENTS_WITH_LEAVES[1:])
    bones = _with_root(joints[:, 1:] - joints[:, parents])
    rest_bones = _with_root(rest[:, 1:] - rest[:, parents])
    targets = joints - joints[:, :1] + rest[:, :1]
    root = _root_by_all(bones, rest_bones) if adaptive else _root_by_spine(bones, rest_bones)
    local: list[Tensor] = [root] * NUM_JOINTS
    world: list[Tensor] = [root] * NUM_JOINTS
    place: list[Tensor] = [rest[:, 0]] * NUM_JOINTS
    unit_twist = twist / (_norm(twist) + 1e-8)
    for level in _LEVELS:
        above = [PARENTS[joint] for joint in level]
        ends = [CHILDREN[joint] for joint in level]
        parent_world = torch.stack([world[joint] for joint in above], 1)  # [B, K, 3, 3]
        bone, rest_bone = bones[:, ends], rest_bones[:, ends]  # [B, K, 3]
        start = torch.stack([place[joint] for joint in above], 1) + _turned(
            parent_world, rest_bones[:, list(level)]
        )
        if adaptive:
            to_length = bone * (_norm(rest_bone) / _norm(bone))
            to_target = targets[:, ends] - start
            far = (to_target - to_length).detach().norm(dim=-1, keepdim=True) > SWITCH
            bone = torch.where(far, to_length, to_target)
        swing = swing_between(rest_bone, _turned(parent_world.transpose(-1, -2), bone))
        turn = _about(_unit(rest_bone), unit_twist[:, [joint - 1 for joint in level]])
        rotation = swing @ turn
        for index, joint in enumerate(level):
            local[joint] = rotation[:, index]
            world[joint] = parent_world[:, index] @ rotation[:, index]
            place[joint] = start[:, index]
    return torch.stack(local, 1)


def swing_between(
    a: Tensor,  # [..., 3]
    b: Tensor,  # [..., 3]
) -> Tensor:  # [..., 3, 3]
    """The smallest rotation that turns direction a into direction b.

    The identity, with a finite gradient, where a vector is zero or they are exactly opposite.
    """
    a, b = _unit(a), _unit(b)
    axis = torch.linalg.cross(a, b)
    cosine = (a * b).sum(-1)[..., None, None]
    squared = axis.square().sum(-1)[..., None, None]
    # (1 - cosine) / sine^2, which is 1 / (1 + cosine)
    near = 1 / (1 + cosine.clamp_min(0))
    opposite = (1 - cosine) / (squared + 1e-12)
    skew = hat(axis)
    eye = torch.eye(3, dtype=a.dtype, device=a.device)
    return eye + skew + skew @ skew * torch.where(cosine >= 0, near, opposite)


def _root_by_all(
    bones: Tensor,  # [B, 29, 3]
    rest_bones: Tensor,  # [B, 29, 3]
) -> Tensor:  # [B, 3, 3]
    """The rotation of the pelvis that fits its three bones best (Kabsch)."""
    ends = [joint for joint, parent in enumerate(PARENTS) if parent == 0]
    return roma.special_procrustes(  # type: ignore[no-any-return]
        bones[:, ends].transpose(1, 2) @ rest_bones[:, ends], method="svd"
    )


def _root_by_spine(
    bones: Tensor,  # [B, 29, 3]
    rest_bones: Tensor,  # [B, 29, 3]
) -> Tensor:  # [B, 3, 3]
    """The spine's bone exactly, then about it the middle of the hips."""
    spine, hips = JOINT["spine1"], [JOINT["left_hip"], JOINT["right_hip"]]
    upright = swing_between(rest_bones[:, spine], bones[:, spine])
    axis = _unit(bones[:, spine])

    def across(x: Tensor) -> Tensor:
        return x - (x * axis).sum(-1, keepdim=True) * axis

    turn = swing_between(
        across(_turned(upright, rest_bones[:, hips].mean(1))), across(bones[:, hips].mean(1))
    )
    return turn @ upright


def _about(
    axis: Tensor,  # [..., 3] of length 1
    twist: Tensor,  # [..., 2] cos, sin
) -> Tensor:  # [..., 3, 3]
    cosine, sine = twist[..., :1, None], twist[..., 1:, None]
    skew = hat(axis)
    eye = torch.eye(3, dtype=axis.dtype, device=axis.device)
    return eye + sine * skew + (1 - cosine) * (skew @ skew)


def _turned(rotation: Tensor, vector: Tensor) -> Tensor:
    return (rotation @ vector[..., None])[..., 0]


def _norm(x: Tensor) -> Tensor:
    return (x.square().sum(-1, keepdim=True) + _EPS).sqrt()


def _unit(x: Tensor) -> Tensor:
    return x / _norm(x)


def _with_root(
    bones: Tensor,  # [B, 28, 3] of all joints but the root
) -> Tensor:  # [B, 29, 3] numbered as the joints are
    return torch.cat([torch.zeros_like(bones[:, :1]), bones], 1)

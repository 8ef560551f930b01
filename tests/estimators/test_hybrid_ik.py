"""Hybrid inverse kinematics against forward kinematics, and against a loop in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import roma
import torch
from published_layouts import LEAF_VERTICES, PARENTS, smpl_arrays
from torch import Tensor

from posegen_ray.body.model import forward_kinematics
from posegen_ray.body.rotation import from_axis_angle
from posegen_ray.estimators.hybrid_ik import CHILDREN, inverse_kinematics, swing_between

TREE = [*PARENTS, 15, 22, 23, 10, 11]
BONE_OF = [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 27, 28, 15, 16, 17, 24, 18, 19, 20, 21, 22, 23, 25, 26]


def rest_joints(count: int) -> Tensor:  # [count, 29, 3] float64
    template = smpl_arrays()["v_template"]
    joints = np.concatenate([template[:24], template[LEAF_VERTICES]]).astype(np.float64)
    grown = 1 + 0.05 * np.random.default_rng(0).normal(size=(count, 1, 3))
    return torch.from_numpy(joints * grown)


def posed(rotations: Tensor, rest: Tensor) -> Tensor:  # [B, 29, 3]
    """Forward kinematics with leaves."""
    joints, bones = forward_kinematics(rotations, rest[:, :24])
    above = TREE[24:]
    leaves = (bones[:, above, :, :3] @ rest[:, 24:, :, None])[..., 0] + bones[:, above, :, 3]
    return torch.cat([joints, leaves], 1)


def a_pose(count: int, spread: float = 0.6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Rotations whose torso is one that a skeleton without twist in its forks can take."""
    stream = torch.Generator().manual_seed(seed)
    angles = spread * torch.randn(count, 24, 3, generator=stream, dtype=torch.float64)
    rotations = from_axis_angle(angles)
    rest = rest_joints(count)
    return rotations, rest, posed(rotations, rest)


def twist_of(rotations: Tensor, rest: Tensor) -> Tensor:  # [B, 23, 2] cos, sin
    """What is left of each rotation when its swing is taken away, as an angle about the bone."""
    values = []
    for joint in range(1, 24):
        bone = rest[:, BONE_OF[joint]] - rest[:, TREE[BONE_OF[joint]]]
        turned = (rotations[:, joint] @ bone[..., None])[..., 0]
        swing = swing_between(bone, turned)
        rotvec = roma.rotmat_to_rotvec(swing.transpose(1, 2) @ rotations[:, joint])
        angle = (rotvec * bone).sum(-1) / bone.norm(dim=-1)
        values.append(torch.stack([angle.cos(), angle.sin()], -1))
    return torch.stack(values, 1)


def test_bones_lead_to_the_published_children():
    assert list(CHILDREN) == BONE_OF


@pytest.mark.parametrize("adaptive", [True, False])
def test_joints_to_rotations_to_joints(adaptive):
    rotations, rest, joints = a_pose(16)
    twist = 3.0 * twist_of(rotations, rest)  # its length does not matter
    found = inverse_kinematics(joints + 0.7, rest, twist, adaptive)
    assert torch.allclose(found, rotations, atol=1e-6)
    assert torch.allclose(posed(found, rest), joints, atol=1e-6)


def test_without_the_twist_the_bones_still_point_where_they_should():
    """Joints that hang on a single chain need no twist: a swing reaches them."""
    rotations, rest, joints = a_pose(8)
    twist = twist_of(rotations, rest)
    ends = [joint - 1 for joint in (15, 18, 19, 20, 21, 22, 23, 7, 8, 10, 11)]
    twist[:, ends] = torch.tensor([1.0, 0.0], dtype=torch.float64)
    found = posed(inverse_kinematics(joints, rest, twist, True), rest)
    assert torch.allclose(found, joints, atol=1e-6)


def naive_loop(joints: np.ndarray, rest: np.ndarray, twist: np.ndarray, adaptive: bool):
    """One person, joint by joint, as the method is described."""

    def cross_matrix(v):
        return np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])

    def about(axis, cosine, sine):
        k = cross_matrix(axis)
        return np.eye(3) + sine * k + (1 - cosine) * k @ k

    def swing(a, b):
        axis = np.cross(a, b)
        size, scale = np.linalg.norm(axis), np.linalg.norm(a) * np.linalg.norm(b)
        return about(axis / (size + 1e-12), a @ b / scale, size / scale)

    bone = {j: joints[j] - joints[TREE[j]] for j in range(1, 29)}
    rest_bone = {j: rest[j] - rest[TREE[j]] for j in range(1, 29)}
    target = joints - joints[0] + rest[0]
    if adaptive:
        u, _, v = np.linalg.svd(sum(np.outer(rest_bone[j], bone[j]) for j in (1, 2, 3)))
        flip = np.diag([1, 1, np.linalg.det(v.T @ u.T)])
        root = v.T @ flip @ u.T
    else:
        up = swing(rest_bone[3], bone[3])
        axis = bone[3] / np.linalg.norm(bone[3])
        before, after = up @ (rest_bone[1] + rest_bone[2]) / 2, (bone[1] + bone[2]) / 2
        before, after = before - (before @ axis) * axis, after - (after @ axis) * axis
        root = swing(before, after) @ up
    local, world, place = [root], [root], [rest[0]]
    for joint in range(1, 24):
        above, end = TREE[joint], BONE_OF[joint]
        place.append(place[above] + world[above] @ rest_bone[joint])
        aim = bone[end]
        if adaptive:
            length = np.linalg.norm(rest_bone[end]) / np.linalg.norm(bone[end])
            aim = target[end] - place[joint]
            if np.linalg.norm(aim - length * bone[end]) > 0.015:
                aim = length * bone[end]
        cosine, sine = twist[joint - 1] / np.linalg.norm(twist[joint - 1])
        axis = rest_bone[end] / np.linalg.norm(rest_bone[end])
        rotation = swing(rest_bone[end], world[above].T @ aim) @ about(axis, cosine, sine)
        local.append(rotation)
        world.append(world[above] @ rotation)
    return np.stack(local)


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("noise", [0.004, 0.05])  # metres: both sides of the switch
def test_joints_that_no_body_can_take_are_treated_as_published(adaptive, noise):
    _, rest, joints = a_pose(6)
    stream = torch.Generator().manual_seed(1)
    joints = joints + noise * torch.randn(joints.shape, generator=stream, dtype=torch.float64)
    twist = torch.randn(6, 23, 2, generator=stream, dtype=torch.float64)
    found = inverse_kinematics(joints, rest, twist, adaptive)
    for row in range(6):
        expected = naive_loop(joints[row].numpy(), rest[row].numpy(), twist[row].numpy(), adaptive)
        assert np.abs(found[row].numpy() - expected).max() < 1e-6


@pytest.mark.parametrize("adaptive", [True, False])
def test_gradients_agree_with_finite_differences(adaptive):
    rotations, rest, joints = a_pose(1, 0.4)
    inputs = (joints, rest, twist_of(rotations, rest))
    directions = torch.randn(1, 24, 3, 3, generator=torch.Generator().manual_seed(2)).double()

    def some(*values: Tensor) -> Tensor:
        return (inverse_kinematics(*values, adaptive) * directions).sum()

    inputs = tuple(value.clone().requires_grad_(True) for value in inputs)
    assert torch.autograd.gradcheck(some, inputs, atol=1e-5)


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("case", ["rest", "opposite", "no length", "one point", "no twist"])
def test_gradients_are_finite_at_poles_and_degenerate_bones(adaptive, case):
    rest = rest_joints(2).float()
    joints = rest.clone()
    twist = torch.zeros(2, 23, 2)
    twist[..., 0] = float(case != "no twist")
    if case == "opposite":
        joints = -joints
    if case == "no length":
        joints[:, 20] = joints[:, 18]
    if case == "one point":
        joints = torch.zeros_like(joints)
    joints.requires_grad_(True)
    twist.requires_grad_(True)
    rotations = inverse_kinematics(joints, rest, twist, adaptive)
    assert torch.isfinite(rotations).all()
    weights = torch.randn(rotations.shape, generator=torch.Generator().manual_seed(0))
    (rotations * weights).sum().backward()
    assert torch.isfinite(joints.grad).all()
    assert torch.isfinite(twist.grad).all()

"""Kinematics and skinning against plain serial computations in numpy."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from posegen_ray.body.model import BodyModel, forward_kinematics, skin
from posegen_ray.body.skeleton import (
    JOINT,
    JOINT_NAMES,
    LIMB_JOINT_NAMES,
    NUM_JOINTS,
    PARENTS,
    mirrored,
)


def random_rotations(count: int, seed: int) -> torch.Tensor:
    turned = Rotation.random(count * NUM_JOINTS, random_state=seed).as_matrix()
    return torch.from_numpy(turned).float().reshape(count, NUM_JOINTS, 3, 3)


def test_parents_come_first_and_sides_mirror() -> None:
    assert all(parent < joint for joint, parent in enumerate(PARENTS))
    other = mirrored(JOINT_NAMES)
    assert other[JOINT["left_knee"]] == JOINT["right_knee"]
    assert other[JOINT["head"]] == JOINT["head"]
    assert all(other[other[joint]] == joint for joint in range(NUM_JOINTS))
    for joint, parent in enumerate(PARENTS):
        if parent >= 0:
            assert PARENTS[other[joint]] == other[parent]
    assert len(set(LIMB_JOINT_NAMES)) == 12


def test_kinematics_agree_with_recursive_homogeneous_matrices() -> None:
    rotations = random_rotations(3, 0)
    rest = torch.randn(3, NUM_JOINTS, 3, generator=torch.Generator().manual_seed(0))
    joints, bones = forward_kinematics(rotations, rest)

    def world(item: int, joint: int) -> np.ndarray:
        local = np.eye(4)
        local[:3, :3] = rotations[item, joint].double().numpy()
        here = rest[item, joint].double().numpy()
        if PARENTS[joint] < 0:
            local[:3, 3] = here
            return local
        local[:3, 3] = here - rest[item, PARENTS[joint]].double().numpy()
        return world(item, PARENTS[joint]) @ local

    for item in range(3):
        for joint in range(NUM_JOINTS):
            matrix = world(item, joint)
            assert np.allclose(joints[item, joint].numpy(), matrix[:3, 3], atol=1e-4)
            back = np.eye(4)
            back[:3, 3] = -rest[item, joint].numpy()
            assert np.allclose(bones[item, joint].numpy(), (matrix @ back)[:3], atol=1e-4)


def test_skinning_agrees_with_a_loop_over_vertices() -> None:
    stream = torch.Generator().manual_seed(1)
    points = torch.randn(2, 7, 3, generator=stream)
    weights = torch.rand(7, NUM_JOINTS, generator=stream).softmax(1)
    bones = torch.randn(2, NUM_JOINTS, 3, 4, generator=stream)
    posed = skin(points, weights, bones)
    for item in range(2):
        for vertex in range(7):
            expected = np.zeros(3)
            for joint in range(NUM_JOINTS):
                matrix = bones[item, joint].numpy()
                moved = matrix[:, :3] @ points[item, vertex].numpy() + matrix[:, 3]
                expected += weights[vertex, joint].item() * moved
            assert np.allclose(posed[item, vertex].numpy(), expected, atol=1e-5)


def test_identity_is_the_t_pose_and_translation_moves_everything(body: BodyModel) -> None:
    shape = torch.zeros(1, body.num_shape)
    eye = torch.eye(3).expand(2, NUM_JOINTS, 3, 3)
    move = torch.tensor([[0.0, 0.0, 0.0], [1.0, -2.0, 3.0]])
    posed = body(eye, shape, move, vertices=True)
    assert torch.allclose(posed.joints[0], body.rest_joints(shape)[0], atol=1e-6)
    assert torch.allclose(posed.vertices[0], body.rest_vertices(shape)[0], atol=1e-5)
    assert torch.allclose(posed.joints[1] - posed.joints[0], move[1].expand(24, 3), atol=1e-5)
    assert torch.allclose(
        posed.vertices[1] - posed.vertices[0], move[1].expand_as(posed.vertices[0]), atol=1e-5
    )
    assert body(eye, shape).vertices is None


def test_joints_are_where_the_bones_carry_them(body: BodyModel) -> None:
    rotations = random_rotations(4, 2)
    shape = torch.randn(4, body.num_shape, generator=torch.Generator().manual_seed(2))
    posed = body(rotations, shape, torch.ones(4, 3))
    rest = body.rest_joints(shape)
    carried = (posed.bones[..., :3] @ rest[..., None])[..., 0] + posed.bones[..., 3]
    assert torch.allclose(carried, posed.joints, atol=1e-4)


def test_pose_gradient_agrees_with_finite_differences(body: BodyModel) -> None:
    model = body.double()
    try:
        rotations = random_rotations(1, 3).double().requires_grad_()
        shape = torch.zeros(1, model.num_shape, dtype=torch.float64, requires_grad=True)

        def joints(turned: torch.Tensor, form: torch.Tensor) -> torch.Tensor:
            return model(turned, form).joints

        assert torch.autograd.gradcheck(joints, (rotations, shape), atol=1e-5)
    finally:
        body.float()

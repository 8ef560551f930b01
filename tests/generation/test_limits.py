import math

import pytest
import roma
import torch

from posegen_ray.body.rotation import about_axis, from_axis_angle
from posegen_ray.body.skeleton import JOINT, NUM_JOINTS
from posegen_ray.generation.limits import TWIST_AXIS, JointLimits, swing_twist_angles


def random_rotations(count: int, degrees: float, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    vectors = torch.randn(count, NUM_JOINTS, 3, generator=rng) * math.radians(degrees)
    return from_axis_angle(vectors)


def test_angles_put_together_again_give_the_rotation() -> None:
    rotations = random_rotations(16, 40)
    angles = swing_twist_angles(rotations)
    axis = torch.eye(3)[list(TWIST_AXIS)]
    swing = roma.rotvec_to_rotmat(angles * (1 - axis))
    twist = roma.rotvec_to_rotmat(angles * axis)
    torch.testing.assert_close(swing @ twist, rotations, atol=1e-5, rtol=0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_turn_about_one_axis_is_that_angle(axis: int) -> None:
    angles = swing_twist_angles(about_axis(axis, torch.full((1, NUM_JOINTS), 0.7)))
    expected = torch.zeros(1, NUM_JOINTS, 3)
    expected[..., axis] = 0.7
    torch.testing.assert_close(angles, expected, atol=1e-5, rtol=0)


def bent(joint: str, axis: int, degrees: float) -> torch.Tensor:
    rotations = torch.eye(3).repeat(1, NUM_JOINTS, 1, 1)
    rotations[0, JOINT[joint]] = about_axis(axis, torch.tensor(math.radians(degrees)))
    return rotations


@pytest.mark.parametrize(
    ("joint", "axis", "possible", "impossible"),
    [
        ("left_knee", 0, 120, -60),  # knees bend backwards only
        ("right_knee", 0, 120, -60),
        ("left_elbow", 1, -120, 60),  # elbows bend forwards only
        ("right_elbow", 1, 120, -60),
        ("left_hip", 0, -110, 100),
        ("left_shoulder", 2, -80, -150),
        ("right_shoulder", 2, 80, 150),
        ("head", 1, 50, 150),
    ],
)
def test_anatomy_allows_and_forbids(
    joint: str, axis: int, possible: float, impossible: float
) -> None:
    limits = JointLimits.anatomical()
    assert limits.excess(bent(joint, axis, possible)).max() == 0
    assert limits.excess(bent(joint, axis, impossible)).max() > 0.1


def test_widened_limits_hold_every_pose_they_were_made_from() -> None:
    rotations = random_rotations(64, 60)
    assert JointLimits.anatomical().excess(rotations).max() > 0
    assert JointLimits.anatomical().widened(rotations, 0.0).excess(rotations).max() < 1e-5


def test_excess_has_a_gradient_that_leads_back_inside() -> None:
    rotvec = torch.zeros(1, NUM_JOINTS, 3)
    rotvec[0, JOINT["left_knee"], 0] = -1.0
    rotvec.requires_grad_()
    JointLimits.anatomical().excess(from_axis_angle(rotvec)).sum().backward()
    assert rotvec.grad is not None
    assert torch.isfinite(rotvec.grad).all()
    assert rotvec.grad[0, JOINT["left_knee"], 0] < -0.9  # more extension, more excess


def test_a_turn_is_made_as_far_as_the_bounds_allow_joint_by_joint() -> None:
    limits = JointLimits.anatomical()
    generator = torch.Generator().manual_seed(0)
    start = torch.eye(3).expand(64, NUM_JOINTS, 3, 3)
    turn = torch.randn(64, NUM_JOINTS, 3, generator=generator)
    found = limits.share_within(start, turn)
    expected = torch.zeros(64, NUM_JOINTS)
    for part in (0.125, 0.25, 0.5, 1.0):  # the largest that fits is written last
        angles = swing_twist_angles(from_axis_angle(part * turn))
        inside = (angles >= limits.low) & (angles <= limits.high)
        expected[inside.all(-1)] = part
    assert torch.equal(found, expected)
    assert set(found.unique().tolist()) == {0.0, 0.125, 0.25, 0.5, 1.0}

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from generation_fakes import capsule_checker, capsule_people, small_bank
from scipy.spatial import ConvexHull

from posegen_ray.body.rotation import about_axis
from posegen_ray.body.skeleton import JOINT
from posegen_ray.config import CameraRangeConfig, ValidityConfig
from posegen_ray.generation.lighting import as_filmed
from posegen_ray.generation.proposal import Proposal, SourceSampler, View, scene_camera
from posegen_ray.generation.support import overhang
from posegen_ray.generation.validity import (
    Validity,
    add_counts,
    capsule_radii,
    concatenate_validity,
    segment_distance,
)
from posegen_ray.records import PoseBatch
from posegen_ray.scene import mid_hip, pose_people


def front(rotations: torch.Tensor, azimuth: float = 0.0, distance: float = 4.0) -> Proposal:
    count = len(rotations)

    def full(value: float) -> torch.Tensor:
        return torch.full((count,), float(value))

    focal = full(0.5 * 512 * distance / 1.8)
    view = View(full(azimuth), full(0.1), full(0), full(distance), focal, torch.zeros(count, 2))
    subjects = torch.zeros(count, dtype=torch.long)
    return Proposal(PoseBatch(rotations, torch.zeros(count, 3)), view, subjects, as_filmed(count))


def check(proposal: Proposal, config: ValidityConfig | None = None) -> Validity:
    people = capsule_people()
    posed = pose_people(proposal, people)
    frame = scene_camera(proposal.view, mid_hip(posed.joints))
    return capsule_checker(people, config).check(proposal, posed, frame)


def bend(joint: str, axis: int, degrees: float) -> torch.Tensor:
    rotations = torch.eye(3).repeat(1, 24, 1, 1)
    rotations[0, JOINT[joint]] = about_axis(axis, torch.tensor(math.radians(degrees)))
    return rotations


def test_real_poses_from_eye_level_are_valid() -> None:
    proposal, _ = SourceSampler(small_bank(), 2)(64, torch.Generator().manual_seed(0))
    counts = check(proposal).counts()
    assert counts["drawn"] == 64
    assert counts["valid"] == 64


def test_t_pose_is_valid() -> None:
    assert check(front(torch.eye(3).repeat(1, 24, 1, 1))).valid.all()


@pytest.mark.parametrize(
    ("rotations", "reason"),
    [
        (bend("left_knee", 0, -60), "joint_limits"),
        (bend("left_hip", 2, -28), "self_penetration"),  # one leg through the other
        (bend("left_shoulder", 2, -110), "self_penetration"),  # the arm inside the trunk
    ],
)
def test_impossible_bodies_are_rejected_with_their_reason(
    rotations: torch.Tensor, reason: str
) -> None:
    validity = check(front(rotations))
    assert not validity.valid.any()
    assert validity.counts()[reason] == 1


def test_limbs_behind_the_trunk_are_not_visible() -> None:
    # from the side one arm and one leg hide the other; all four point along the line of sight
    rotations = torch.eye(3).repeat(1, 24, 1, 1)
    strict = ValidityConfig(visible_joints=12)
    assert check(front(rotations), strict).visible.all()
    assert not check(front(rotations, azimuth=math.pi / 2), strict).visible.any()


def test_bodies_outside_the_frame_and_cameras_at_bad_places_are_rejected() -> None:
    rotations = torch.eye(3).repeat(1, 24, 1, 1)
    good = front(rotations)
    view = good.view
    moved = View(
        view.azimuth,
        view.elevation,
        view.roll,
        view.distance,
        view.focal,
        torch.tensor([[0.45, 0.0]]),
    )
    assert not check(replace(good, view=moved)).in_frame.any()
    assert not check(front(rotations, distance=0.3)).camera.any()
    low = View(
        view.azimuth,
        torch.tensor([-0.5]),
        view.roll,
        view.distance,
        view.focal,
        view.framing,
    )
    on_the_ground = ValidityConfig(above_ground=True)
    assert not check(replace(good, view=low), on_the_ground).camera.any()
    assert check(good, on_the_ground).camera.all()
    assert check(replace(good, view=low)).camera.all()  # training has no ground


def test_bodies_that_would_topple_are_rejected_where_that_is_wanted() -> None:
    upright = torch.eye(3).repeat(1, 24, 1, 1)
    leaning = upright.clone()
    leaning[:, 0] = about_axis(0, torch.tensor(math.radians(35)))
    wanted = ValidityConfig(support=0.02)
    assert check(front(upright), wanted).supported.all()
    assert not check(front(leaning), wanted).supported.any()
    assert check(front(leaning)).supported.all()


def test_overhang_is_the_distance_from_the_hull_of_what_carries() -> None:
    """Against scipy's hull: random points on the ground, and a heavy one above them."""
    stream = np.random.default_rng(0)
    feet = stream.normal(size=(12, 2))
    for head in stream.normal(scale=2.0, size=(20, 2)):
        points = np.zeros((1, 13, 3))
        points[0, :12, [0, 2]] = feet.T
        points[0, 12] = head[0], 1.7, head[1]
        axes = torch.from_numpy(points)
        mass = torch.tensor([0.0] * 12 + [1.0])
        ours = overhang(axes, axes, torch.zeros(1, 13), mass)
        corners = feet[ConvexHull(feet).vertices]
        following = np.roll(corners, -1, 0)
        side, to_head = following - corners, head - corners
        inside = (side[:, 0] * to_head[:, 1] - side[:, 1] * to_head[:, 0] >= 0).all()
        along = ((to_head * side).sum(1) / (side**2).sum(1)).clip(0, 1)
        apart = np.linalg.norm(to_head - along[:, None] * side, axis=1).min()
        exact = 0.0 if inside else apart
        assert exact - 0.02 * side.max() <= float(ours) <= exact + 1e-6


def test_proposals_that_are_not_finite_are_invalid() -> None:
    rotations = torch.eye(3).repeat(2, 24, 1, 1)
    rotations[1, 5] = float("nan")
    assert check(front(rotations)).valid.tolist() == [True, False]


def test_distance_between_segments_agrees_with_a_dense_search() -> None:
    rng = torch.Generator().manual_seed(0)
    ends = torch.randn(4, 40, 3, generator=rng)
    steps = torch.linspace(0, 1, 201)[:, None, None]
    first = ends[0] + steps * (ends[1] - ends[0])
    second = ends[2] + steps * (ends[3] - ends[2])
    dense = torch.stack([torch.cdist(first[:, i], second[:, i]).min() for i in range(40)])
    exact = segment_distance(ends[0], ends[1], ends[2], ends[3])
    torch.testing.assert_close(exact, dense, atol=1e-2, rtol=0)
    assert (exact <= dense + 1e-5).all()


def test_parallel_segments_and_points_have_their_distance() -> None:
    a, b = torch.zeros(1, 3), torch.tensor([[1.0, 0, 0]])
    up = torch.tensor([[0.0, 2, 0]])
    torch.testing.assert_close(segment_distance(a, b, a + up, b + up), torch.tensor([2.0]))
    torch.testing.assert_close(segment_distance(a, a, up, up), torch.tensor([2.0]))


def test_capsules_are_as_thick_as_the_body() -> None:
    body = capsule_people().body
    radii = capsule_radii(body, torch.zeros(2))
    forearm, thigh = radii[5], radii[9]
    assert abs(float(forearm) - 0.04) < 0.01
    assert abs(float(thigh) - 0.075) < 0.015
    assert (capsule_radii(body, torch.tensor([0.0, 1.0])) > radii).all()


def test_counts_add_up() -> None:
    validity = check(front(torch.cat([bend("left_knee", 0, -60), bend("head", 1, 10)])))
    both = concatenate_validity([validity, validity])
    assert both.counts() == add_counts(validity.counts(), validity.counts())
    assert both.counts()["valid"] == 2


def test_impossible_thresholds_are_refused() -> None:
    with pytest.raises(ValueError, match="visible_joints"):
        ValidityConfig(visible_joints=13)
    assert CameraRangeConfig.eye_level().elevation_high < CameraRangeConfig().elevation_high

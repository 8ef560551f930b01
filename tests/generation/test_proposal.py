import math

import pytest
import torch
from generation_fakes import small_bank

from posegen_ray.body.camera import project, to_camera
from posegen_ray.body.rotation import about_axis
from posegen_ray.config import CameraRangeConfig, ConditionConfig
from posegen_ray.errors import ConfigError, DataError
from posegen_ray.generation.limits import JointLimits
from posegen_ray.generation.proposal import (
    LIMBS,
    PoseBank,
    Proposal,
    RandomSampler,
    RealPoseSampler,
    SourceSampler,
    concatenate_proposals,
    facing,
    recombine,
    scene_camera,
    view_from_unit,
    wrap,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_target_appears_where_framing_says_and_at_its_distance() -> None:
    unit = torch.rand(32, 7, generator=seeded(0))
    ranges = CameraRangeConfig(framing=0.2)
    view = view_from_unit(unit, ranges, torch.zeros(32))
    target = torch.randn(32, 3, generator=seeded(1))
    camera = scene_camera(view, target)
    pixels = project(camera, target[:, None])[:, 0]
    torch.testing.assert_close(pixels, (0.5 + view.framing) * 512, atol=0.01, rtol=0)
    depth = to_camera(camera, target[:, None])[:, 0, 2]
    torch.testing.assert_close(depth, view.distance, atol=1e-4, rtol=0)


def test_views_stay_in_their_range_and_elevation_is_uniform_in_area() -> None:
    ranges = CameraRangeConfig(elevation_low=-30, elevation_high=80)
    view = view_from_unit(torch.rand(20000, 7, generator=seeded(0)), ranges, torch.zeros(20000))
    assert view.elevation.min() >= math.radians(-30.01)
    assert view.elevation.max() <= math.radians(80.01)
    height = view.elevation.sin()  # uniform on a sphere (Archimedes)
    middle = (math.sin(math.radians(-30)) + math.sin(math.radians(80))) / 2
    assert abs(float(height.mean()) - middle) < 0.01
    fill = view.focal * 1.8 / view.distance / 512
    assert fill.min() >= ranges.fill_low - 1e-4
    assert fill.max() <= ranges.fill_high + 1e-4


def test_middle_azimuth_looks_at_the_face_whatever_the_heading() -> None:
    heading = torch.tensor([0.0, 1.0, -2.5])
    view = view_from_unit(torch.full((3, 7), 0.5), CameraRangeConfig(), heading)
    camera = scene_camera(view, torch.zeros(3, 3))
    nose = torch.stack([heading.sin(), torch.zeros(3), heading.cos()], 1)[:, None]
    nearer = to_camera(camera, torch.zeros(3, 1, 3))[..., 2] - to_camera(camera, nose)[..., 2]
    assert (nearer > 0.5).all()


def test_facing_is_the_heading_of_the_root() -> None:
    angle = torch.tensor([0.3, -3.0, 2.0])
    rotations = torch.eye(3).repeat(3, 24, 1, 1)
    rotations[:, 0] = about_axis(1, angle)
    torch.testing.assert_close(facing(rotations), angle)
    torch.testing.assert_close(wrap(angle + 4 * math.pi), angle, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["source", "real", "random"])
def test_samplers_follow_their_seed(kind: str) -> None:
    bank = small_bank()
    sampler = {
        "source": SourceSampler(bank, 3),
        "real": RealPoseSampler(bank, CameraRangeConfig(), 3),
        "random": RandomSampler(bank, CameraRangeConfig(), 3),
    }[kind]
    first, names = sampler(16, seeded(5))
    again, _ = sampler(16, seeded(5))
    other, _ = sampler(16, seeded(6))
    assert torch.equal(first.poses.rotations, again.poses.rotations)
    assert torch.equal(first.view.azimuth, again.view.azimuth)
    assert not torch.equal(first.view.azimuth, other.view.azimuth)
    assert {name.split(":")[0] for name in names} <= set(bank.names)
    assert set(first.subjects.tolist()) <= {0, 1, 2}


def test_source_samples_are_real_frames_at_eye_level() -> None:
    bank = small_bank()
    proposal, names = SourceSampler(bank, 1)(40, seeded(0))
    for rotation, name in zip(proposal.poses.rotations, names, strict=True):
        clip, frame = name.split(":")
        row = (bank.clip == bank.names.index(clip)) & (bank.frame == int(frame))
        assert torch.equal(bank.poses.rotations[row][0], rotation)
    assert proposal.view.elevation.abs().max() <= math.radians(20.01)


def test_a_condition_asks_for_some_clips_and_views() -> None:
    bank = small_bank()
    name = bank.names[1]
    asked = ConditionConfig(
        clips=[f"{name[:3]}*"], azimuth_low=60, azimuth_high=120, elevation_low=50
    )
    sampler = RandomSampler(bank, CameraRangeConfig(), 1, condition=asked)
    proposal, names = sampler(200, seeded(0))
    assert {one.split(":")[0] for one in names} == {name}
    seen = torch.rad2deg(wrap(proposal.view.azimuth - facing(proposal.poses.rotations)))
    assert seen.min() == pytest.approx(60, abs=5)
    assert seen.max() == pytest.approx(120, abs=5)
    high = torch.rad2deg(proposal.view.elevation)
    assert ((high > 49.9) & (high < 80.1)).all()
    with pytest.raises(ConfigError, match="no source clip is called 'fly'"):
        bank.only(["fly"])


def test_clips_are_equally_likely_however_long() -> None:
    bank = small_bank()
    drawn = bank.clip[bank.draw(6000, seeded(0))]
    share = torch.bincount(drawn) / 6000
    assert (share - 1 / len(bank.names)).abs().max() < 0.03
    lengths = torch.bincount(bank.clip)
    assert lengths.max() > 2 * lengths.min()


def test_random_poses_do_not_move_what_capture_leaves_still() -> None:
    bank = small_bank()
    proposal, _ = RandomSampler(bank, CameraRangeConfig(), 1)(32, seeded(0))
    still = proposal.poses.rotations[:, 22]  # the hands never move in the bank
    torch.testing.assert_close(still, torch.eye(3).expand(32, 3, 3), atol=1e-5, rtol=0)


def test_recombination_swaps_whole_limbs_of_its_share_of_poses() -> None:
    bank = small_bank()
    rotations = torch.zeros(2000, 24, 3, 3)  # no pose of the bank: what is swapped shows
    mixed = recombine(rotations, bank, 0.8, seeded(0))
    swapped = (mixed != 0).flatten(2).any(2)
    for limb in LIMBS:
        assert (swapped[:, limb].all(1) == swapped[:, limb].any(1)).all()
        assert abs(float(swapped[:, limb[0]].float().mean()) - 0.4) < 0.04
    trunk = [joint for joint in range(24) if not any(joint in limb for limb in LIMBS)]
    assert not swapped[:, trunk].any()
    assert not torch.equal(mixed, recombine(rotations, bank, 0.8, seeded(1)))


@pytest.mark.parametrize("degrees", [20.0, 60.0])
def test_random_turns_stay_inside_the_joint_limits(degrees: float) -> None:
    bank = small_bank()
    sampler = RandomSampler(bank, CameraRangeConfig(), 1, noise_degrees=degrees)
    sampler.scale = torch.full((24, 3), math.radians(degrees))  # far beyond what the bank does
    proposal, _ = sampler(64, seeded(0))
    limits = JointLimits.anatomical().widened(bank.poses.rotations, 0.0)
    assert limits.excess(proposal.poses.rotations).max() < 1e-4


def test_concatenating_slices_gives_the_batch_back() -> None:
    proposal, _ = SourceSampler(small_bank(), 2)(6, seeded(0))
    again = concatenate_proposals([proposal[:2], proposal[[2, 3]], proposal[4:]])
    assert isinstance(again, Proposal)
    assert torch.equal(again.view.focal, proposal.view.focal)
    assert torch.equal(again.subjects, proposal.subjects)


def test_bank_without_frames_and_impossible_cameras_are_refused() -> None:
    with pytest.raises(DataError, match="no motion frames"):
        PoseBank.from_clips([])
    with pytest.raises(ConfigError, match="elevation"):
        CameraRangeConfig(elevation_low=-90)
    with pytest.raises(ConfigError, match="framing"):
        CameraRangeConfig(framing=0.7)

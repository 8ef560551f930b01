"""Resampling, and telling files apart."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from posegen_ray.body.model import forward_kinematics
from posegen_ray.body.rotation import about_axis, from_axis_angle, geodesic_angle
from posegen_ray.body.skeleton import NUM_JOINTS
from posegen_ray.errors import DataError
from posegen_ray.motion import read_clip
from posegen_ray.motion.clips import Clip, between_frames, local_from_world, resampled


def turning(angles: torch.Tensor) -> torch.Tensor:
    """Poses whose left knee turns about x by these angles."""
    rotations = torch.eye(3).repeat(len(angles), NUM_JOINTS, 1, 1)
    rotations[:, 4] = about_axis(0, angles)
    return rotations


def test_resampling_turns_evenly_and_moves_linearly_between_uneven_key_frames() -> None:
    times = torch.tensor([0.0, 0.1, 0.4, 1.0])
    poses = resampled("x", turning(2 * times), times[:, None] * torch.ones(4, 3), times, 30.0)
    assert len(poses) == 31
    steady = torch.arange(31) / 30
    assert torch.allclose(poses.rotations[:, 4], about_axis(0, 2 * steady), atol=1e-4)
    assert torch.allclose(poses.translation, steady[:, None].expand(31, 3), atol=1e-5)


def test_same_rate_leaves_the_frames_as_they_are() -> None:
    rotations = turning(torch.linspace(0, 1, 20))
    poses = resampled("x", rotations, torch.zeros(20, 3), torch.arange(20) / 30.0, 30.0)
    assert torch.allclose(poses.rotations, rotations, atol=1e-5)


def test_a_value_that_is_not_finite_is_refused_with_its_frame() -> None:
    rotations = turning(torch.linspace(0, 1, 5))
    rotations[3, 7, 0, 0] = math.nan
    with pytest.raises(DataError, match=r"clip\.x: frame 3"):
        resampled("clip.x", rotations, torch.zeros(5, 3), torch.arange(5) / 30.0, 30.0)


def test_between_frames_takes_the_shortest_way() -> None:
    a = from_axis_angle(torch.randn(20, 3, generator=torch.Generator().manual_seed(0)))
    b = from_axis_angle(torch.randn(20, 3, generator=torch.Generator().manual_seed(1)))
    whole = geodesic_angle(a, b)
    third = between_frames(a, b, torch.full((20,), 1 / 3))
    assert torch.allclose(geodesic_angle(a, third), whole / 3, atol=1e-3)
    assert torch.allclose(geodesic_angle(third, b), whole * 2 / 3, atol=1e-3)
    assert torch.allclose(between_frames(a, b, torch.ones(20)), b, atol=1e-4)


def test_local_rotations_undo_the_kinematic_chain() -> None:
    stream = torch.Generator().manual_seed(2)
    local = from_axis_angle(torch.randn(3, NUM_JOINTS, 3, generator=stream))
    _, bones = forward_kinematics(local, torch.zeros(3, NUM_JOINTS, 3))
    assert torch.allclose(local_from_world(bones[..., :3]), local, atol=1e-5)


def test_parts_remember_where_they_start() -> None:
    poses = resampled(
        "x", turning(torch.zeros(10)), torch.zeros(10, 3), torch.arange(10) / 30, 30.0
    )
    part = Clip("a", poses, 30.0).part(4, 9).part(1, 3)
    assert (part.start, len(part), part.name) == (5, 2, "a")


def test_unknown_and_missing_files_are_named(tmp_path: Path) -> None:
    strange = tmp_path / "strange.txt"
    strange.write_text("hello")
    for path in (strange, tmp_path / "missing.bvh", tmp_path):
        with pytest.raises(DataError, match=path.name):
            read_clip(path)

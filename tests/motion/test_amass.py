"""AMASS: both layouts give the same clip, in our axes; damaged files are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from posegen_ray.body.model import forward_kinematics
from posegen_ray.body.rotation import from_axis_angle
from posegen_ray.errors import DataError
from posegen_ray.motion import read_clip

FRAMES = 40


def recording(seed: int = 0) -> dict[str, np.ndarray]:
    stream = np.random.default_rng(seed)
    poses = 0.3 * stream.normal(size=(FRAMES, 156)).cumsum(0) / 10
    # AMASS: z up; a person who stands and faces -y is turned by 90 degrees about x
    upright = Rotation.from_euler("x", 90, degrees=True)
    poses[:, :3] = (upright * Rotation.from_rotvec(poses[:, :3])).as_rotvec()
    trans = np.stack([np.linspace(0, 1, FRAMES), np.zeros(FRAMES), np.full(FRAMES, 0.9)], 1)
    return {"poses": poses, "trans": trans, "mocap_framerate": np.array(120.0)}


def save(path: Path, **fields: np.ndarray) -> Path:
    np.savez(path, **fields)
    return path


def test_both_layouts_give_the_same_clip(tmp_path: Path) -> None:
    old = recording()
    poses = old["poses"]
    new = {
        "root_orient": poses[:, :3],
        "pose_body": poses[:, 3:66],
        "trans": old["trans"],
        "mocap_frame_rate": old["mocap_framerate"],
    }
    a = read_clip(save(tmp_path / "walk_poses.npz", **old))
    b = read_clip(save(tmp_path / "walk_stageii.npz", **new))
    assert torch.equal(a.poses.rotations, b.poses.rotations)
    assert torch.equal(a.poses.translation, b.poses.translation)
    assert (a.name, b.name) == ("walk_poses", "walk_stageii")
    assert len(a) == 10  # 39 steps at 120 Hz are 9.75 at 30 Hz
    expected = from_axis_angle(torch.from_numpy(poses[::4, 3:66]).float().unflatten(1, (21, 3)))
    assert torch.allclose(a.poses.rotations[:, 1:22], expected, atol=1e-4)
    assert torch.equal(a.poses.rotations[:, 22:], torch.eye(3).expand(10, 2, 3, 3))


def test_z_up_becomes_y_up(tmp_path: Path) -> None:
    fields = recording()
    fields["poses"] = np.zeros((FRAMES, 72))
    fields["poses"][:, 0] = np.pi / 2  # stands, faces -y
    clip = read_clip(save(tmp_path / "stand.npz", **fields))
    rest = torch.tensor([0.0, 1.0, 0.0]).expand(1, 24, 3).clone()
    rest[:, 15, 1] = 1.7
    joints, bones = forward_kinematics(clip.poses.rotations[:1], rest)
    assert joints[0, 15, 1] > joints[0, 0, 1] + 0.5  # the head is up
    assert torch.allclose(bones[0, 0, :, 2], torch.tensor([0.0, 0.0, 1.0]), atol=1e-5)  # faces +z
    # trans holds the pelvis: 0.9 m above the floor, moving along x
    assert float(clip.poses.translation[0, 1]) == pytest.approx(-0.05, abs=1e-5)
    assert float(clip.poses.translation[-1, 0]) > 0.9


def test_our_world_pose_is_theirs_with_the_axes_renamed(tmp_path: Path) -> None:
    fields = recording(1)
    clip = read_clip(save(tmp_path / "x.npz", **fields))
    rest = torch.randn(1, 24, 3, generator=torch.Generator().manual_seed(0))
    rest[:, 0] = 0
    angles = torch.from_numpy(fields["poses"][:1, :66]).float().unflatten(1, (22, 3))
    theirs = torch.eye(3).repeat(1, 24, 1, 1)
    theirs[:, :22] = from_axis_angle(angles)
    expected, _ = forward_kinematics(theirs, rest)
    ours, _ = forward_kinematics(clip.poses.rotations[:1], rest)
    renamed = torch.stack([expected[..., 0], expected[..., 2], -expected[..., 1]], -1)
    assert torch.allclose(ours, renamed, atol=1e-4)


def test_damage_is_named(tmp_path: Path) -> None:
    good = recording()
    nan = good["poses"].copy()
    nan[7, 30] = np.nan
    without = {name: value for name, value in good.items() if name != "mocap_framerate"}
    cases = {
        "frame 7": {**good, "poses": nan},
        "frame rate": without,
        "neither": {"trans": good["trans"], "betas": np.zeros(16)},
        "trans": {**good, "trans": good["trans"][:-1]},
        "not SMPL": {**good, "poses": good["poses"][:, :60]},
    }
    for message, fields in cases.items():
        with pytest.raises(DataError, match=rf"bad\.npz.*{message}"):
            read_clip(save(tmp_path / "bad.npz", **fields))


def test_truncated_file_is_named(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.npz", **recording()).read_bytes()
    path = tmp_path / "cut.npz"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.npz"):
        read_clip(path)

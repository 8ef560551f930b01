"""DeepMimic's clips: known frames give known geometry; real clips look like what they are."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from scipy.spatial.transform import Rotation

from posegen_ray import assets
from posegen_ray.body.anny import load_anny_body
from posegen_ray.body.model import PosedBody
from posegen_ray.body.skeleton import JOINT
from posegen_ray.errors import DataError
from posegen_ray.motion import Clip, read_clip

# first columns of a frame's parts (quaternions wxyz unless they end in knee or elbow)
ROOT, CHEST, RIGHT_HIP, RIGHT_KNEE, RIGHT_SHOULDER, RIGHT_ELBOW = 4, 8, 16, 20, 25, 29
LEFT_HIP, LEFT_KNEE, LEFT_ANKLE, LEFT_SHOULDER, LEFT_ELBOW = 30, 34, 35, 39, 43
QUATERNIONS = (4, 8, 12, 16, 21, 25, 30, 35, 39)
STANDING = 0.8814  # metres, DeepMimic's root above the floor


def rest_frame() -> list[float]:
    frame = [0.0] * 44
    frame[0], frame[2] = 1 / 30, STANDING
    for column in QUATERNIONS:
        frame[column] = 1.0
    return frame


def quaternion(axis: str, degrees: float) -> list[float]:
    x, y, z, w = Rotation.from_euler(axis, degrees, degrees=True).as_quat()
    return [w, x, y, z]


def write(path: Path, frames: list[list[float]]) -> Path:
    path.write_text(json.dumps({"Loop": "wrap", "Frames": frames}))
    return path


def posed(clip: Clip) -> PosedBody:
    body = load_anny_body()
    return body(clip.poses.rotations, torch.zeros(1, 10), clip.poses.translation, vertices=True)


def pose_of(tmp_path: Path, frame: list[float]) -> dict[str, torch.Tensor]:
    """Joint positions of one frame on Anny, by name."""
    path = write(tmp_path / "humanoid3d_made.txt", [frame, frame])
    joints = posed(read_clip(path)).joints[0]
    return {name: joints[index] for name, index in JOINT.items()}


def direction(joints: dict[str, torch.Tensor], start: str, end: str) -> torch.Tensor:
    return torch.nn.functional.normalize(joints[end] - joints[start], dim=0)


def angle(a: torch.Tensor, b: torch.Tensor) -> float:
    return math.degrees(math.acos(float((a @ b).clamp(-1, 1))))


def close(a: torch.Tensor, b: tuple[float, float, float], tolerance: float = 1e-3) -> bool:
    return torch.allclose(a, torch.tensor(b), atol=tolerance)


def test_rest_frame_stands_with_arms_and_legs_straight_down(tmp_path: Path) -> None:
    joints = pose_of(tmp_path, rest_frame())
    for side in ("left", "right"):
        for start, end in (
            ("shoulder", "elbow"),
            ("elbow", "wrist"),
            ("hip", "knee"),
            ("knee", "ankle"),
        ):
            assert close(direction(joints, f"{side}_{start}", f"{side}_{end}"), (0.0, -1.0, 0.0))
    assert joints["left_wrist"][0] > 0.1
    assert joints["left_foot"][2] > joints["left_ankle"][2] + 0.05
    body = posed(read_clip(tmp_path / "humanoid3d_made.txt"))
    assert abs(float(body.vertices[0, :, 1].min())) < 0.05  # feet on the ground


def test_elbow_angle_is_preserved_and_bends_forwards(tmp_path: Path) -> None:
    frame = rest_frame()
    frame[LEFT_ELBOW] = math.radians(70)
    joints = pose_of(tmp_path, frame)
    upper = direction(joints, "left_shoulder", "left_elbow")
    lower = direction(joints, "left_elbow", "left_wrist")
    assert angle(upper, lower) == pytest.approx(70, abs=0.1)
    assert lower[2] > 0.9  # the hand is in front
    assert close(direction(joints, "right_elbow", "right_wrist"), (0.0, -1.0, 0.0))


def test_knee_angle_is_preserved_and_bends_backwards(tmp_path: Path) -> None:
    frame = rest_frame()
    frame[RIGHT_KNEE] = math.radians(-50)
    joints = pose_of(tmp_path, frame)
    upper = direction(joints, "right_hip", "right_knee")
    lower = direction(joints, "right_knee", "right_ankle")
    assert angle(upper, lower) == pytest.approx(50, abs=0.1)
    assert lower[2] < -0.7
    assert close(direction(joints, "left_knee", "left_ankle"), (0.0, -1.0, 0.0))


def test_hip_lifts_the_left_leg_forwards_and_shoulder_the_right_arm_sideways(
    tmp_path: Path,
) -> None:
    frame = rest_frame()
    frame[LEFT_HIP : LEFT_HIP + 4] = quaternion("z", 90)
    frame[RIGHT_SHOULDER : RIGHT_SHOULDER + 4] = quaternion("x", -90)
    joints = pose_of(tmp_path, frame)
    assert close(direction(joints, "left_hip", "left_knee"), (0.0, 0.0, 1.0))
    assert close(direction(joints, "right_hip", "right_knee"), (0.0, -1.0, 0.0))
    assert close(direction(joints, "right_shoulder", "right_wrist"), (-1.0, 0.0, 0.0))


def test_root_turn_and_travel_follow_our_axes(tmp_path: Path) -> None:
    here, there = rest_frame(), rest_frame()
    there[1] += 1.0  # one metre forwards
    there[ROOT : ROOT + 4] = quaternion("y", 90)  # to the left, seen from above
    clip = read_clip(write(tmp_path / "turn.txt", [here, there]))
    assert clip.poses.translation[1, 2] == pytest.approx(1.078, abs=0.01)  # larger legs
    assert close(clip.poses.rotations[1, 0] @ torch.tensor([0.0, 0.0, 1.0]), (1.0, 0.0, 0.0))


def test_chest_turn_is_shared_by_the_spine_and_reaches_the_shoulders(tmp_path: Path) -> None:
    frame = rest_frame()
    frame[CHEST : CHEST + 4] = quaternion("y", 60)
    clip = read_clip(write(tmp_path / "twist.txt", [frame, frame]))
    spine = clip.poses.rotations[0, [3, 6, 9]]
    angles = Rotation.from_matrix(spine.numpy()).magnitude()
    assert angles == pytest.approx([math.radians(20)] * 3, abs=1e-4)


def test_frame_times_are_kept(tmp_path: Path) -> None:
    frames = [rest_frame() for _ in range(4)]
    for frame, duration in zip(frames, (0.1, 0.3, 0.6, 0.0), strict=True):
        frame[0] = duration
    clip = read_clip(write(tmp_path / "uneven.txt", frames))
    assert len(clip) == 31
    assert clip.frames_per_second == 30.0


@pytest.fixture(scope="module")
def folder() -> Path:
    return assets.fetch("mocap-deepmimic")


def real(folder: Path, name: str) -> tuple[Clip, PosedBody]:
    clip = read_clip(next(folder.rglob(f"humanoid3d_{name}.txt")))
    return clip, posed(clip)


def test_a_walk_looks_like_a_walk(folder: Path) -> None:
    clip, body = real(folder, "walk")
    assert clip.name == "walk"
    travel = clip.poses.translation[-1] - clip.poses.translation[0]
    facing = body.bones[:, 0, :, 2].mean(0)
    assert float(torch.nn.functional.normalize(travel, dim=0) @ facing) > 0.95
    lowest = body.vertices[..., 1].amin(1)
    assert lowest.abs().max() < 0.04  # always one foot on the ground
    ahead = (body.joints - body.joints[:, :1])[..., 2]
    hands = ahead[:, JOINT["left_wrist"]] - ahead[:, JOINT["right_wrist"]]
    feet = ahead[:, JOINT["left_ankle"]] - ahead[:, JOINT["right_ankle"]]
    assert torch.corrcoef(torch.stack([hands, feet]))[0, 1] < -0.8  # opposite swing
    for side in ("left", "right"):
        hip, knee, ankle = (body.joints[:, JOINT[f"{side}_{n}"]] for n in ("hip", "knee", "ankle"))
        # a bent knee lies in front of the line from hip to ankle
        line = (knee - hip - (ankle - hip) / 2)[:, 2]
        assert line.min() > -0.03
        assert line.max() > 0.1
    head = body.joints[:, JOINT["head"], 1]
    assert (head > 1.3).all()


def test_a_cartwheel_passes_through_a_handstand_and_a_crawl_stays_low(folder: Path) -> None:
    _, body = real(folder, "cartwheel")
    heights = body.joints[..., 1]
    feet = heights[:, [JOINT["left_ankle"], JOINT["right_ankle"]]].amin(1)
    hands = heights[:, [JOINT["left_wrist"], JOINT["right_wrist"]]].amax(1)
    assert (feet - hands).max() > 0.7
    _, body = real(folder, "crawl")
    assert body.joints[..., 1].max() < 1.0
    up = body.bones[:, 0, :, 1]  # along the spine
    assert up[:, 1].abs().max() < 0.75


def bad_quaternion(frames: list[list[float]]) -> None:
    frames[2][LEFT_ANKLE : LEFT_ANKLE + 4] = [0.0] * 4


def short_row(frames: list[list[float]]) -> None:
    frames[1].pop()


def not_a_number(frames: list[list[float]]) -> None:
    frames[3][CHEST] = math.nan


def backwards(frames: list[list[float]]) -> None:
    frames[0][0] = -1.0


@pytest.mark.parametrize(
    ("damage", "frame"),
    [(bad_quaternion, 2), (short_row, 1), (not_a_number, 3), (backwards, 0)],
)
def test_damaged_frames_are_named(tmp_path: Path, damage: object, frame: int) -> None:
    frames = [rest_frame() for _ in range(5)]
    damage(frames)  # type: ignore[operator]
    path = write(tmp_path / "bad.txt", frames)
    with pytest.raises(DataError, match=rf"bad\.txt: frame {frame} "):
        read_clip(path)


def test_truncated_file_is_named(folder: Path, tmp_path: Path) -> None:
    whole = next(folder.rglob("humanoid3d_walk.txt")).read_text()
    path = tmp_path / "cut.txt"
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.txt"):
        read_clip(path)
    with pytest.raises(DataError, match="two frames"):
        read_clip(write(tmp_path / "one.txt", [rest_frame()]))

"""BVH: a small hand-written figure in the layouts that occur, and damaged files."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from scipy.spatial.transform import Rotation

from posegen_ray.body.anny import load_anny_body
from posegen_ray.body.skeleton import JOINT
from posegen_ray.errors import DataError
from posegen_ray.motion import read_clip
from posegen_ray.motion.bvh import parse_bvh

# name, children; offsets below. CMU's names, in inches, T-pose, y up, facing +z
TREE = (
    "Hips",
    [
        ("LeftUpLeg", [("LeftLeg", [("LeftFoot", [])])]),
        ("RightUpLeg", [("RightLeg", [("RightFoot", [])])]),
        (
            "Spine",
            [
                ("Neck", [("Head", [])]),
                ("LeftShoulder", [("LeftArm", [("LeftForeArm", [("LeftHand", [])])])]),
                ("RightShoulder", [("RightArm", [("RightForeArm", [("RightHand", [])])])]),
            ],
        ),
    ],
)
OFFSETS = {
    "Hips": (0, 0, 0),
    "LeftUpLeg": (4, -2, 0),
    "LeftLeg": (0, -17, 0),
    "LeftFoot": (0, -17, 0),
    "Spine": (0, 8, 0),
    "Neck": (0, 12, 0),
    "Head": (0, 4, 0),
    "LeftShoulder": (2, 10, 0),
    "LeftArm": (5, 0, 0),
    "LeftForeArm": (11, 0, 0),
    "LeftHand": (10, 0, 0),
}
HANGING = {"LeftForeArm": (0, -11, 0), "LeftHand": (0, -10, 0)}  # arms down in the rest pose
Y_UP = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
Z_UP = ((1, 0, 0), (0, 0, -1), (0, 1, 0))  # file <- ours: facing -y


def turned(axes: tuple[tuple[int, ...], ...], vector: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(sum(a * v for a, v in zip(row, vector, strict=True)) for row in axes)


def write_bvh(
    path: Path,
    angles: list[dict[str, tuple[float, float, float]]],
    order: str = "ZYX",
    axes: tuple[tuple[int, ...], ...] = Y_UP,
    rest: dict[str, tuple[float, ...]] | None = None,
    prefix: str = "",
    root: tuple[float, float, float] = (0.0, 36.0, 0.0),
) -> Path:
    """Frames give degrees about the file's axes, in the channels' order."""
    offsets = {**OFFSETS, **(rest or {})}
    for name, (x, y, z) in list(offsets.items()):
        offsets[name.replace("Left", "Right")] = (-x if "Left" in name else x, y, z)
    lines, names = ["HIERARCHY"], []

    def walk(node: tuple[str, list], keyword: str) -> None:
        name, children = node
        names.append(name)
        lines.append(f"{keyword} {prefix}{name}")
        lines.append("{")
        lines.append("OFFSET {} {} {}".format(*turned(axes, offsets[name])))
        rotations = " ".join(f"{axis}rotation" for axis in order)
        moves = "Xposition Yposition Zposition " if keyword == "ROOT" else ""
        lines.append(f"CHANNELS {6 if moves else 3} {moves}{rotations}")
        for child in children:
            walk(child, "JOINT")
        if not children:
            lines.extend(["End Site", "{", "OFFSET 0 1 0", "}"])
        lines.append("}")

    walk(TREE, "ROOT")
    lines += ["MOTION", f"Frames: {len(angles)}", "Frame Time: 0.0333333"]
    for frame in angles:
        values = list(turned(axes, root))
        for name in names:
            values += frame.get(name, (0.0, 0.0, 0.0))
        lines.append(" ".join(map(str, values)))
    path.write_text("\n".join(lines) + "\n")
    return path


def directions(path: Path) -> dict[str, torch.Tensor]:
    """Unit vectors of the limbs on Anny in the first frame, named by their first joint."""
    clip = read_clip(path)
    joints = load_anny_body()(clip.poses.rotations, torch.zeros(1, 10)).joints[0]
    ends = {"hip": "knee", "knee": "ankle", "shoulder": "elbow", "elbow": "wrist"}
    return {
        f"{side}_{start}": torch.nn.functional.normalize(
            joints[JOINT[f"{side}_{end}"]] - joints[JOINT[f"{side}_{start}"]], dim=0
        )
        for side in ("left", "right")
        for start, end in ends.items()
    }


def test_t_pose_file_gives_the_t_pose_on_the_floor(tmp_path: Path) -> None:
    clip = read_clip(write_bvh(tmp_path / "still.bvh", [{}, {}]))
    eye = torch.eye(3).expand(2, 24, 3, 3)
    collars = [JOINT[n] for n in ("left_collar", "right_collar")]
    assert torch.allclose(clip.poses.rotations, eye, atol=1e-5)
    assert torch.allclose(clip.poses.rotations[:, collars], eye[:, collars], atol=1e-5)
    # 34 inches of leg are 0.86 m of ours; hips at 36 inches stand 2 cm below our pelvis
    assert float(clip.poses.translation[0, 1]) == pytest.approx(36 / 34 * 0.86 - 0.95, abs=1e-4)
    assert (clip.name, clip.frames_per_second) == ("still", 30.0)


@pytest.mark.parametrize("order", ["ZYX", "XYZ", "ZXY", "YXZ"])
def test_channel_order_is_the_order_of_multiplication(tmp_path: Path, order: str) -> None:
    degrees = (30.0, -20.0, 50.0)
    frame = {"Hips": degrees, "LeftUpLeg": degrees}
    clip = read_clip(write_bvh(tmp_path / "x.bvh", [frame, frame], order))
    expected = Rotation.from_euler(order, degrees, degrees=True).as_matrix()
    root = clip.poses.rotations[0, 0].double().numpy()
    hip = clip.poses.rotations[0, JOINT["left_hip"]].double().numpy()
    assert root == pytest.approx(expected, abs=1e-4)
    assert hip == pytest.approx(expected, abs=1e-4)


def test_knee_and_elbow_bend_as_far_as_in_the_file(tmp_path: Path) -> None:
    frame = {"LeftLeg": (0.0, 0.0, 60.0), "RightForeArm": (0.0, 40.0, 0.0)}
    limbs = directions(write_bvh(tmp_path / "bend.bvh", [frame, frame]))
    cosine = float(limbs["left_hip"] @ limbs["left_knee"])
    assert math.degrees(math.acos(cosine)) == pytest.approx(60, abs=0.1)
    assert limbs["left_knee"][2] < -0.5  # backwards
    cosine = float(limbs["right_shoulder"] @ limbs["right_elbow"])
    assert math.degrees(math.acos(cosine)) == pytest.approx(40, abs=0.1)
    assert limbs["right_elbow"][2] > 0.5  # the right hand comes forwards


def test_a_rest_pose_with_hanging_arms_is_understood(tmp_path: Path) -> None:
    still = directions(write_bvh(tmp_path / "hang.bvh", [{}, {}], rest=HANGING))
    assert torch.allclose(still["left_shoulder"], torch.tensor([0.0, -1.0, 0.0]), atol=1e-4)
    raised = {"LeftArm": (90.0, 0.0, 0.0)}  # about z: from down to the left
    limbs = directions(write_bvh(tmp_path / "up.bvh", [raised, raised], rest=HANGING))
    assert torch.allclose(limbs["left_elbow"], torch.tensor([1.0, 0.0, 0.0]), atol=1e-4)
    assert torch.allclose(limbs["right_elbow"], torch.tensor([0.0, -1.0, 0.0]), atol=1e-4)


def test_z_up_files_and_prefixed_names_give_the_same_clip(tmp_path: Path) -> None:
    # turn about our x by 25 degrees, then about our y by 40, written in both files' axes
    ours = {"Hips": (0.0, 40.0, 25.0)}
    theirs = {"Hips": (40.0, 0.0, 25.0)}  # our y is their z
    a = read_clip(write_bvh(tmp_path / "a.bvh", [ours, ours]))
    b = read_clip(write_bvh(tmp_path / "b.bvh", [theirs, theirs], axes=Z_UP, prefix="mixamorig:"))
    assert torch.allclose(a.poses.rotations, b.poses.rotations, atol=1e-5)
    assert torch.allclose(a.poses.translation, b.poses.translation, atol=1e-5)


def test_parser_reads_the_hierarchy(tmp_path: Path) -> None:
    motion = parse_bvh(write_bvh(tmp_path / "p.bvh", [{}, {}, {}]))
    joints = {joint.name: joint for joint in motion.joints}
    assert len(joints) == 18
    assert motion.joints[joints["LeftHand"].parent].name == "LeftForeArm"
    assert motion.joints[joints["RightUpLeg"].parent].name == "Hips"
    assert joints["RightArm"].offset == (-5.0, 0.0, 0.0)
    assert joints["LeftUpLeg"].first_channel == 6
    assert motion.values.shape == (3, 6 + 17 * 3)
    assert motion.frame_time == pytest.approx(1 / 30, abs=1e-6)


def test_damage_is_named(tmp_path: Path) -> None:
    whole = write_bvh(tmp_path / "whole.bvh", [{}, {}, {}]).read_text()
    path = tmp_path / "bad.bvh"
    lines = whole.rstrip().split("\n")
    cases = {
        "frame 2 has": "\n".join(lines)[:-20],
        "announces 3 frames": "\n".join(lines[:-1]),
        "frame 1 holds": "\n".join([*lines[:-2], lines[-1].replace("36.0", "nan"), lines[-1]]),
        "not a complete BVH": whole[:300],
        "HIERARCHY section is damaged": whole.replace("JOINT LeftLeg\n{", "JOINT LeftLeg\n{ {", 1),
        "no joint": whole.replace("LeftForeArm", "Something"),
        "could not convert": whole.replace("36.0", "thirty"),
    }
    for message, text in cases.items():
        path.write_text(text)
        with pytest.raises(DataError, match=rf"bad\.bvh.*{message}"):
            read_clip(path)

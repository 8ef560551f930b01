"""Reader of BVH files with CMU's joint names (also Mixamo's, which differ by a prefix).

`parse_bvh` reads any HIERARCHY / MOTION file; `read_bvh` retargets it: the file's rest pose (all
channels zero) may be a T-pose, an A-pose or anything upright, and its up axis y or z; both are
found from the offsets. Units do not matter, since sizes are scaled by the legs' length. Position
channels of joints other than the root are ignored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from posegen_ray.body.rotation import about_axis, between
from posegen_ray.errors import DataError
from posegen_ray.motion.clips import (
    FRAMES_PER_SECOND,
    LEG_LENGTH,
    PELVIS_HEIGHT,
    Clip,
    resampled,
)
from posegen_ray.motion.retarget import SIDES, WorldPose, local_rotations

# the file's names of our parts, without prefix; the first that exists is taken
_NAMES: dict[str, tuple[str, ...]] = {
    "root": ("Hips", "hip", "root"),
    "chest": ("Spine2", "Spine1", "Spine", "chest"),
    "head": ("Head",),
    "hip": ("*UpLeg", "*Thigh"),
    "knee": ("*Leg", "*Shin", "*LowLeg"),
    "ankle": ("*Foot",),
    "collar": ("*Shoulder", "*Collar"),
    "shoulder": ("*Arm", "*UpArm"),
    "elbow": ("*ForeArm", "*LowArm"),
    "wrist": ("*Hand",),
}
# T-pose directions of the limbs (for the left side) and the joint at each limb's end
_LIMB_ENDS = {"hip": "knee", "knee": "ankle", "shoulder": "elbow", "elbow": "wrist"}


@dataclass
class BvhJoint:
    """A joint of the hierarchy, in the order of the file."""

    name: str
    parent: int  # -1: the root
    offset: tuple[float, ...] = (0.0, 0.0, 0.0)  # from the parent, in the file's units
    channels: list[str] = field(default_factory=list)
    first_channel: int = 0


@dataclass(frozen=True)
class BvhMotion:
    """A parsed file."""

    joints: list[BvhJoint]
    values: Tensor  # [K, channels]
    frame_time: float  # seconds


def read_bvh(path: Path, frames_per_second: float = FRAMES_PER_SECOND) -> Clip:
    """A BVH file as a clip; its name is the file's.

    Raises:
        DataError: not a BVH file, truncated, a bad frame, or a joint that is needed is missing.
    """
    motion = parse_bvh(path)
    index = _find_joints(path, motion.joints)
    rest = _rest_positions(motion.joints)  # [J, 3]
    axes = _body_axes(path, rest, index)
    world, root = _world_rotations(motion)
    world = axes @ world @ axes.T  # ours, relative to the file's rest pose
    rest = rest @ axes.T
    limbs, collars = {}, {}
    for side in SIDES:
        for part, end in _LIMB_ENDS.items():
            start = index[f"{side}_{part}"]
            down = part in ("hip", "knee")
            ours = torch.tensor(
                [0.0, -1.0, 0.0] if down else [1.0 if side == "left" else -1.0, 0.0, 0.0]
            )
            aim = between(ours, rest[index[f"{side}_{end}"]] - rest[start])
            limbs[f"{side}_{part}"] = world[:, start] @ aim
            if part == "elbow":
                limbs[f"{side}_wrist"] = world[:, index[f"{side}_wrist"]] @ aim
        limbs[f"{side}_ankle"] = world[:, index[f"{side}_ankle"]]
        if f"{side}_collar" in index:
            collars[f"{side}_collar"] = world[:, index[f"{side}_collar"]]
    pose = WorldPose(
        world[:, index["root"]], world[:, index["chest"]], world[:, index["head"]], limbs, collars
    )
    scale = LEG_LENGTH / _leg_length(rest, index)
    translation = scale * root @ axes.T - torch.tensor([0.0, PELVIS_HEIGHT, 0.0])
    times = torch.arange(len(root), dtype=torch.float64) * motion.frame_time
    poses = resampled(str(path), local_rotations(pose), translation, times, frames_per_second)
    return Clip(path.stem, poses, frames_per_second)


def parse_bvh(path: Path) -> BvhMotion:
    """The hierarchy and the table of channel values of any BVH file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}).", "Give a BVH text file.") from error
    head, separator, tail = text.partition("MOTION")
    if not head.lstrip().startswith("HIERARCHY") or not separator:
        raise DataError(
            f"{path} is not a complete BVH file.", "It needs HIERARCHY and MOTION sections."
        )
    try:
        joints = _parse_hierarchy(head.split())
    except (ValueError, IndexError) as error:
        raise DataError(
            f"{path}: the HIERARCHY section is damaged ({error}).", "Export the file again."
        ) from error
    return _parse_motion(path, joints, tail)


def _parse_hierarchy(words: list[str]) -> list[BvhJoint]:
    joints: list[BvhJoint] = []
    open_joints: list[int] = []  # -1 marks an end site
    channels = at = 0
    while at < len(words):
        word = words[at]
        if word in ("ROOT", "JOINT"):
            joints.append(BvhJoint(words[at + 1], open_joints[-1] if open_joints else -1))
            open_joints.append(len(joints) - 1)
            at += 3  # keyword, name, opening brace
        elif word == "End":
            open_joints.append(-1)
            at += 3
        elif word == "OFFSET":
            if open_joints[-1] >= 0:
                joints[open_joints[-1]].offset = tuple(float(w) for w in words[at + 1 : at + 4])
            at += 4
        elif word == "CHANNELS":
            count = int(words[at + 1])
            joint = joints[open_joints[-1]]
            joint.channels = words[at + 2 : at + 2 + count]
            joint.first_channel = channels
            channels += count
            at += 2 + count
        elif word == "}":
            open_joints.pop()
            at += 1
        elif word == "HIERARCHY":
            at += 1
        else:
            raise ValueError(f"unexpected word {word!r}")
    if open_joints or not joints:
        raise ValueError("a brace is missing")
    return joints


def _parse_motion(path: Path, joints: list[BvhJoint], text: str) -> BvhMotion:
    lines = [line.split() for line in text.splitlines() if line.strip()]
    width = sum(len(joint.channels) for joint in joints)
    try:
        count = int(lines[0][-1])
        frame_time = float(lines[1][-1])
    except (IndexError, ValueError) as error:
        raise DataError(
            f"{path}: 'Frames:' or 'Frame Time:' is missing.", "Export the file again."
        ) from error
    rows = lines[2:]
    if count < 2 or frame_time <= 0 or len(rows) < count:
        raise DataError(
            f"{path} announces {count} frames of {frame_time} s and has {len(rows)}.",
            "It needs at least two; is the file complete?",
        )
    for number, row in enumerate(rows[:count]):
        if len(row) != width:
            raise DataError(
                f"{path}: frame {number} has {len(row)} numbers instead of {width}.",
                "Is the file complete?",
            )
    try:
        values = torch.tensor([[float(word) for word in row] for row in rows[:count]])
    except ValueError as error:
        raise DataError(f"{path}: {error}.", "Repair that frame.") from error
    return BvhMotion(joints, values, frame_time)


def _world_rotations(motion: BvhMotion) -> tuple[Tensor, Tensor]:  # [K, J, 3, 3], root [K, 3]
    """Orientation of every joint, the file's axes; Euler angles in each joint's channel order."""
    frames = len(motion.values)
    world: list[Tensor] = []
    root = torch.zeros(frames, 3)  # position channels are absolute: they replace the offset
    for number, joint in enumerate(motion.joints):
        turn = torch.eye(3).expand(frames, 3, 3)
        for position, channel in enumerate(joint.channels):
            axis = "XYZ".find(channel[:1].upper())
            value = motion.values[:, joint.first_channel + position]
            if channel.lower().endswith("rotation"):
                turn = turn @ about_axis(axis, value * (math.pi / 180))
            elif number == 0:
                root[:, axis] = value
        world.append(turn if joint.parent < 0 else world[joint.parent] @ turn)
    return torch.stack(world, 1), root


def _rest_positions(joints: list[BvhJoint]) -> Tensor:  # [J, 3]
    positions: list[Tensor] = []
    for joint in joints:
        offset = torch.tensor(joint.offset)
        positions.append(offset if joint.parent < 0 else positions[joint.parent] + offset)
    return torch.stack(positions)


def _find_joints(path: Path, joints: list[BvhJoint]) -> dict[str, int]:
    """Our part -> number of the file's joint. Prefixes such as "mixamorig:" are ignored."""
    names = [joint.name.rpartition(":")[2].lower() for joint in joints]
    index: dict[str, int] = {}
    for part, candidates in _NAMES.items():
        for side in SIDES if "*" in candidates[0] else ("",):
            wanted = [name.replace("*", side).lower() for name in candidates]
            found = next((names.index(name) for name in wanted if name in names), None)
            if found is not None:
                index[f"{side}_{part}" if side else part] = found
            elif part != "collar":
                raise DataError(
                    f"{path} has no joint {' or '.join(wanted)} (it has {', '.join(names)}).",
                    "Rename its joints to CMU's names (Hips, LeftUpLeg, LeftLeg, ...).",
                )
    return index


def _body_axes(
    path: Path,
    rest: Tensor,  # [J, 3]
    index: dict[str, int],
) -> Tensor:  # [3, 3]: v_ours = axes @ v_file
    """Where left, up and forward are in the rest pose, snapped to the file's nearest axes."""
    left = _nearest_axis(rest[index["left_hip"]] - rest[index["right_hip"]])
    up = _nearest_axis(rest[index["head"]] - rest[index["left_ankle"]])
    if bool((left.abs() == up.abs()).all()):
        raise DataError(
            f"{path}: the rest pose (all channels zero) does not stand upright.",
            "Export it with an upright rest pose.",
        )
    return torch.stack([left, up, torch.linalg.cross(left, up)])


def _nearest_axis(
    direction: Tensor,  # [3]
) -> Tensor:  # [3]
    axis = torch.zeros(3)
    largest = direction.abs().argmax()
    axis[largest] = direction[largest].sign()
    return axis


def _leg_length(
    rest: Tensor,  # [J, 3]
    index: dict[str, int],
) -> float:
    hip, knee, ankle = (rest[index[f"left_{part}"]] for part in ("hip", "knee", "ankle"))
    return float((knee - hip).norm() + (ankle - knee).norm())

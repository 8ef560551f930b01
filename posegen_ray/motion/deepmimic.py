"""Reader of DeepMimic's clips (Peng et al. 2018, arXiv:1804.02717): JSON with 44 numbers a frame.

Its skeleton: x forward, y up, z to the right; rest pose with arms and legs straight down; knees and
elbows turn about z only (an elbow bends forward with positive angles, a knee backward with
negative ones).
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor

from posegen_ray.body.rotation import about_axis, from_quaternion_wxyz
from posegen_ray.errors import DataError
from posegen_ray.motion.clips import FRAMES_PER_SECOND, PELVIS_HEIGHT, Clip, resampled
from posegen_ray.motion.retarget import SIDES, WorldPose, local_rotations

# columns of a frame: (first, count); 1 column is an angle about z, 4 are a quaternion wxyz
_COLUMNS: dict[str, tuple[int, int]] = {
    "root": (4, 4),
    "chest": (8, 4),
    "neck": (12, 4),
    "right_hip": (16, 4),
    "right_knee": (20, 1),
    "right_ankle": (21, 4),
    "right_shoulder": (25, 4),
    "right_elbow": (29, 1),
    "left_hip": (30, 4),
    "left_knee": (34, 1),
    "left_ankle": (35, 4),
    "left_shoulder": (39, 4),
    "left_elbow": (43, 1),
}
_PARENT = {
    "chest": "root",
    "neck": "chest",
    "hip": "root",
    "knee": "hip",
    "ankle": "knee",
    "shoulder": "chest",
    "elbow": "shoulder",
}
_WIDTH = 44
# thigh, shin, and ankle above the sole: where the root is when its figure stands upright
_ROOT_HEIGHT = 0.4215 + 0.4099 + 0.05
# v_ours = _AXES @ v_theirs
_AXES = torch.tensor([[0.0, 0.0, -1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])


def read_deepmimic(path: Path, frames_per_second: float = FRAMES_PER_SECOND) -> Clip:
    """A clip such as `humanoid3d_walk.txt`; its name is "walk".

    Raises:
        DataError: the file is not such a clip, is truncated, or holds a bad frame.
    """
    frames = _frames(path)
    times = torch.cat([torch.zeros(1), frames[:-1, 0].cumsum(0)])
    rotations = retarget(frames)
    scale = PELVIS_HEIGHT / _ROOT_HEIGHT
    translation = scale * frames[:, 1:4] @ _AXES.T - torch.tensor([0.0, PELVIS_HEIGHT, 0.0])
    poses = resampled(str(path), rotations, translation, times, frames_per_second)
    return Clip(path.stem.removeprefix("humanoid3d_"), poses, frames_per_second)


def retarget(
    frames: Tensor,  # [K, 44]
) -> Tensor:  # [K, 24, 3, 3] local rotations of the common skeleton
    """World orientations carry over; arms hang in their rest pose, ours are stretched sideways."""
    world: dict[str, Tensor] = {}
    for name, (first, count) in _COLUMNS.items():
        values = frames[:, first : first + count]
        local = about_axis(2, values[:, 0]) if count == 1 else from_quaternion_wxyz(values)
        local = _AXES @ local @ _AXES.T
        side, _, part = name.rpartition("_")
        parent = _PARENT.get(part, "")
        if parent in ("root", "chest", ""):
            world[name] = world[parent] @ local if parent else local
        else:
            world[name] = world[f"{side}_{parent}"] @ local
    limbs: dict[str, Tensor] = {}
    for side in SIDES:
        hang = about_axis(2, torch.tensor(-math.pi / 2 if side == "left" else math.pi / 2))
        for part in ("hip", "knee", "ankle"):
            limbs[f"{side}_{part}"] = world[f"{side}_{part}"]
        limbs[f"{side}_shoulder"] = world[f"{side}_shoulder"] @ hang
        limbs[f"{side}_elbow"] = limbs[f"{side}_wrist"] = world[f"{side}_elbow"] @ hang
    return local_rotations(WorldPose(world["root"], world["chest"], world["neck"], limbs, {}))


def _frames(path: Path) -> Tensor:  # [K, 44]
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["Frames"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read as a DeepMimic clip ({type(error).__name__}: {error}).",
            "Is the file complete? It must be JSON with a list of frames under 'Frames'.",
        ) from error
    if not isinstance(rows, list) or len(rows) < 2:
        raise DataError(f"{path} has fewer than two frames.", "Give a longer clip.")
    for number, row in enumerate(rows):
        if not (
            isinstance(row, list)
            and len(row) == _WIDTH
            and all(isinstance(value, (int, float)) for value in row)
        ):
            raise DataError(
                f"{path}: frame {number} is not a list of {_WIDTH} numbers.",
                "Repair or remove that frame.",
            )
    frames = torch.tensor(rows, dtype=torch.float32)
    for name, (first, count) in _COLUMNS.items():
        empty = frames[:, first : first + count].norm(dim=1) < 1e-3
        if count == 4 and bool(empty.any()):
            raise DataError(
                f"{path}: frame {int(empty.nonzero()[0, 0])} has a zero quaternion for {name}.",
                "Repair or remove that frame.",
            )
    if bool((frames[:, 0] < 0).any()):
        number = int((frames[:, 0] < 0).nonzero()[0, 0])
        raise DataError(f"{path}: frame {number} has a negative duration.", "Repair that frame.")
    return frames

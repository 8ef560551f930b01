"""Reader of AMASS (Mahmood et al. 2019): SMPL-family axis-angles in .npz files, z up.

Both layouts: the older one with `poses` and `trans` (SMPL+H; also plain SMPL with 72 columns), and
`*_stageii.npz` with `root_orient` and `pose_body`. Fingers, face and shape are left out.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from posegen_ray.body.rotation import from_axis_angle
from posegen_ray.body.skeleton import NUM_JOINTS
from posegen_ray.errors import DataError
from posegen_ray.motion.clips import FRAMES_PER_SECOND, PELVIS_HEIGHT, Clip, resampled

_RATE_KEYS = ("mocap_framerate", "mocap_frame_rate")
# v_ours = _AXES @ v_theirs: their z is up, and a body with zero root_orient lies on its back there
_AXES = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
_BODY_JOINTS = 22  # SMPL's joints without the hands, which SMPL+H and SMPL-X replace by fingers


def read_amass(path: Path, frames_per_second: float = FRAMES_PER_SECOND) -> Clip:
    """A clip of AMASS; its name is the file's.

    Raises:
        DataError: the file is no such clip, is truncated, or holds a bad frame.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            fields = {
                name: file[name]
                for name in ("poses", "root_orient", "pose_body", "trans", *_RATE_KEYS)
                if name in file.files
            }
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read as an npz file ({type(error).__name__}: {error}).",
            "Is the file complete? Download it again.",
        ) from error
    angles = _angles(path, fields)
    rate = next((float(fields[key]) for key in _RATE_KEYS if key in fields), 0.0)
    if not rate > 0:
        raise DataError(
            f"{path} does not say its frame rate.", f"AMASS files have {' or '.join(_RATE_KEYS)}."
        )
    frames = len(angles)
    if "trans" not in fields or fields["trans"].shape != (frames, 3) or frames < 2:
        raise DataError(
            f"{path} needs at least two frames, and `trans` of as many rows as poses.",
            "Is it an AMASS motion file (not a shape file)?",
        )
    rotations = torch.eye(3).repeat(frames, NUM_JOINTS, 1, 1)
    rotations[:, : angles.shape[1]] = from_axis_angle(angles)
    rotations[:, 0] = _AXES @ rotations[:, 0]
    # SMPL's rest pelvis is within centimetres of its origin's height in these axes
    translation = torch.from_numpy(fields["trans"]).float() @ _AXES.T
    translation = translation - torch.tensor([0.0, PELVIS_HEIGHT, 0.0])
    times = torch.arange(frames, dtype=torch.float64) / rate
    poses = resampled(str(path), rotations, translation, times, frames_per_second)
    return Clip(path.stem, poses, frames_per_second)


def _angles(path: Path, fields: dict[str, np.ndarray]) -> Tensor:  # [K, 22 or 24, 3]
    if "poses" in fields:
        table = fields["poses"]
    elif "root_orient" in fields and "pose_body" in fields:
        table = np.concatenate([fields["root_orient"], fields["pose_body"]], 1)
    else:
        raise DataError(
            f"{path} has neither `poses` nor `root_orient` and `pose_body`.",
            "Is it an AMASS motion file (not a shape file)?",
        )
    if table.ndim != 2 or table.shape[1] < 3 * _BODY_JOINTS:
        raise DataError(
            f"{path}: poses of shape {table.shape} are not SMPL's.",
            f"A row needs at least {3 * _BODY_JOINTS} numbers.",
        )
    joints = NUM_JOINTS if table.shape[1] == 3 * NUM_JOINTS else _BODY_JOINTS
    angles: Tensor = torch.from_numpy(table[:, : 3 * joints]).float().unflatten(1, (joints, 3))
    return angles

"""3DPW (von Marcard et al. 2018): people outdoors, SMPL poses from a moving camera and IMUs.

    sequenceFiles/<split>/<sequence>.pkl, P persons and N frames
      sequence                 its name
      poses [P][N, 72]         axis-angle; the root's in the world
      betas [P][10 or more]    only the first 10 count
      genders [P]              m | f
      poses2d [P][N, 3, 18]    OpenPose: x, y, confidence
      cam_poses [N, 4, 4]      world -> camera
      campose_valid [P][N]     0 where the camera could not be aligned
    imageFiles/<sequence>/image_00000.jpg …  frame i of N

The readme calls two of them `gender` and `poses2D`; both spellings are read. Protocol (Kolotouros
et al. 2019): frames with campose_valid, the box of the 2D joints with confidence above 0, the root
turned into the camera.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from posegen_ray.body.rotation import from_axis_angle
from posegen_ray.body.skeleton import NUM_JOINTS
from posegen_ray.config import DatasetConfig
from posegen_ray.datasets.files import read_image
from posegen_ray.datasets.public.frames import (
    Box,
    Frame,
    PublicSet,
    SmplPose,
    box_around,
    missing_pictures,
    require_complete,
)
from posegen_ray.errors import DataError
from posegen_ray.pickles import load_pickle

SOURCE = (
    "3DPW is free for non-commercial research at https://virtualhumans.mpi-inf.mpg.de/3DPW "
    "(sequenceFiles.zip and imageFiles.zip, unpacked side by side)."
)
_GENDERS = {"m": "male", "f": "female"}


@dataclass(frozen=True)
class _Entry:
    label: str
    sequence: str
    picture: Path
    box: Box
    angles: np.ndarray  # [72]
    camera: np.ndarray  # [3, 3] world -> camera
    shape: np.ndarray  # [10]
    gender: str


class ThreeDPW(PublicSet):
    """A split of 3DPW.

    Raises:
        DataError: files are missing (all are listed), or one is damaged.
    """

    states_joints = False

    def __init__(self, root: Path, config: DatasetConfig) -> None:
        super().__init__(config)
        self.title = f"3DPW {config.split}"
        self._neutral = config.ground_truth == "neutral"
        folder = root / "sequenceFiles" / config.split
        files = sorted(folder.glob("*.pkl"))
        missing = [] if files else [f"{folder}/*.pkl"]
        self._entries: list[_Entry] = []
        for file in files:
            entries = self._sequence(file, root)
            self._entries += entries
            for pictures in {entry.picture.parent for entry in entries}:
                missing += missing_pictures(pictures, sorted({e.picture.name for e in entries}))
        if not files and not (root / "imageFiles").is_dir():
            missing.append(str(root / "imageFiles"))
        require_complete(self.title, missing, SOURCE)
        self.genders = tuple(sorted({entry.gender for entry in self._entries}))

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Frame]:
        for entry in self._entries:
            rotations = from_axis_angle(torch.from_numpy(entry.angles).view(NUM_JOINTS, 3)).numpy()
            rotations[0] = entry.camera @ rotations[0]
            pixels = read_image(entry.picture, entry.label)
            pose = SmplPose(rotations, entry.shape, entry.gender)
            yield Frame(entry.label, pixels, entry.box, entry.sequence, None, pose)

    def _sequence(self, file: Path, root: Path) -> list[_Entry]:
        content = load_pickle(file)
        if not isinstance(content, dict):
            raise DataError(f"{file} holds a {type(content).__name__}.", SOURCE)
        name = str(_field(file, content, "sequence"))
        cameras = np.asarray(_field(file, content, "cam_poses"), np.float64)
        count = len(cameras)
        if cameras.shape != (count, 4, 4):
            raise DataError(f"{file}: cam_poses has shape {cameras.shape}, not [N, 4, 4].", SOURCE)
        people = {
            key: _field(file, content, *keys)
            for key, keys in {
                "poses": ("poses",),
                "betas": ("betas",),
                "genders": ("genders", "gender"),
                "poses2d": ("poses2d", "poses2D"),
                "campose_valid": ("campose_valid",),
            }.items()
        }
        entries = []
        for person in range(len(people["poses"])):
            label = f"{file} (person {person})"
            rows = {key: values[person] for key, values in people.items()}
            poses = _shaped(label, "poses", rows["poses"], (count, 72))
            points = _shaped(label, "poses2d", rows["poses2d"], (count, 3, 18))
            valid = _shaped(label, "campose_valid", rows["campose_valid"], (count,)) > 0
            shape = np.asarray(rows["betas"], np.float64).ravel()[:10]
            gender = _GENDERS.get(str(rows["genders"])[:1])
            if len(shape) != 10 or gender is None:
                raise DataError(f"{label}: betas or gender {rows['genders']!r} is wrong.", SOURCE)
            self._leave_out("campose_valid is 0", int((~valid).sum()))
            for frame in np.flatnonzero(valid).tolist():
                seen = points[frame].T[points[frame, 2] > 0]
                if not len(seen):
                    self._leave_out("no 2D joint to crop by")
                    continue
                entries.append(
                    _Entry(
                        f"{file} (person {person}, frame {frame})",
                        name,
                        root / "imageFiles" / name / f"image_{frame:05d}.jpg",
                        box_around(seen[:, :2]),
                        poses[frame],
                        cameras[frame, :3, :3],
                        shape,
                        "neutral" if self._neutral else gender,
                    )
                )
        return entries


def _field(file: Path, content: dict[str, Any], *names: str) -> Any:
    for name in names:
        if name in content:
            return content[name]
    raise DataError(f"{file} lacks {names[0]!r}.", SOURCE)


def _shaped(label: str, name: str, value: object, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(value, np.float64)
    if array.shape != shape:
        raise DataError(f"{label}: {name} has shape {array.shape}, not {shape}.", SOURCE)
    return array

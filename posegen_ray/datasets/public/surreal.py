"""SURREAL as a test set: rendered people with SMPL poses, mirrored back.

    cmu/<split>/run0 … run2/<sequence>/<clip>_info.mat, <clip>.mp4   (also under data/)

What the files hold, and why pictures are mirrored back: `posegen_ray.datasets.surreal`. Measured is
the middle frame of each sequence's middle clip, or of the clips that a file lists (BodyNet's
namescmu.txt, Varol et al. 2018), or (middle_frame=false) every so manieth frame of all clips.
Frames without a joint in the picture, which SURREAL has, are left out: of BodyNet's 507, later
evaluations measure the 493 that show somebody. The box is that of the 2D joints.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch

from posegen_ray.body.rotation import from_axis_angle
from posegen_ray.body.skeleton import JOINT_NAMES, NUM_JOINTS
from posegen_ray.config import DatasetConfig
from posegen_ray.datasets.files import video_frames
from posegen_ray.datasets.public.frames import (
    Frame,
    PublicSet,
    SmplPose,
    box_around,
    require_complete,
)
from posegen_ray.datasets.surreal import (
    CAMERA_ROTATION,
    HEIGHT,
    LICENCE,
    WIDTH,
    gender_of,
    read_info,
    upright,
)
from posegen_ray.errors import DataError

SOURCE = f"{LICENCE} (SURREAL/data/cmu)."
_CLIP_NAME = re.compile(r"(run\d+/[^/\s]+/[^/\s]+)\.mp4")


@dataclass(frozen=True)
class _Clip:
    info: Path
    video: Path
    frames: list[int]


class Surreal(PublicSet):
    """A split of SURREAL.

    Raises:
        DataError: files are missing (all are listed), or one is damaged.
        AssetError: the package av is not installed.
    """

    def __init__(self, root: Path, config: DatasetConfig) -> None:
        super().__init__(config)
        self.title = f"SURREAL {config.split}"
        self.joint_names = JOINT_NAMES
        self._config = config
        inner = root / "data"
        folder = (inner if inner.is_dir() else root) / "cmu" / config.split
        infos = _infos(folder, config, self.title)
        videos = [info.with_name(f"{_name(info)}.mp4") for info in infos]
        missing = [str(path) for path in (*infos, *videos) if not path.is_file()]
        require_complete(self.title, missing, SOURCE)
        self._clips: list[_Clip] = []
        genders = set()
        for info, video in zip(infos, videos, strict=True):
            content = read_info(info)
            count = content["pose"].shape[1]
            genders.add(gender_of(info, content["gender"]))
            wanted = [count // 2] if config.middle_frame else range(0, count, config.every)
            seen = [frame for frame in wanted if _in_picture(_points(content, frame))]
            self._leave_out("nobody in the picture", len(wanted) - len(seen))
            if seen:
                self._clips.append(_Clip(info, video, seen))
        self.genders = ("neutral",) if config.ground_truth == "neutral" else tuple(sorted(genders))

    def __len__(self) -> int:
        return sum(len(clip.frames) for clip in self._clips)

    def __iter__(self) -> Iterator[Frame]:
        for clip in self._clips:
            content = read_info(clip.info)
            gender = gender_of(clip.info, content["gender"])
            if self._config.ground_truth == "neutral":
                gender = "neutral"
            pictures = video_frames(clip.video, clip.frames)
            for frame, pixels in zip(clip.frames, pictures, strict=True):
                angles = torch.from_numpy(content["pose"][:, frame]).view(NUM_JOINTS, 3)
                rotations = from_axis_angle(angles).numpy()
                in_world = upright(float(content["zrot"][frame])).numpy() @ rotations[0]
                rotations[0] = CAMERA_ROTATION @ in_world
                yield Frame(
                    f"{clip.video} (frame {frame})",
                    np.ascontiguousarray(pixels[:, ::-1]),
                    box_around(_points(content, frame)),
                    clip.info.parent.name,
                    content["joints3D"][..., frame].T @ CAMERA_ROTATION.T,
                    SmplPose(rotations, content["shape"][:, frame], gender),
                )


def _infos(folder: Path, config: DatasetConfig, title: str) -> list[Path]:
    """The _info.mat of the clips that are measured."""
    if config.clips:
        try:
            text = Path(config.clips).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise DataError(
                f"dataset.clips={config.clips} cannot be read ({error}).",
                "Name a text file with lines such as run0/01_01/01_01_c0001.mp4.",
            ) from error
        return [folder / f"{name}_info.mat" for name in _CLIP_NAME.findall(text)]
    infos = sorted(folder.glob("run*/*/*_info.mat"))
    if not infos:
        require_complete(title, [f"{folder}/run*/*/*_info.mat"], SOURCE)
    if config.middle_frame:
        sequences = [list(clips) for _, clips in groupby(infos, lambda info: info.parent)]
        infos = [clips[len(clips) // 2] for clips in sequences]
    return infos


def _points(
    content: dict[str, np.ndarray], frame: int
) -> np.ndarray:  # [24, 2] pixels of the picture mirrored back
    return content["joints2D"][..., frame].T * [-1, 1] + [WIDTH - 1, 0]


def _in_picture(points: np.ndarray) -> bool:
    return bool(((points >= 0) & (points < [WIDTH, HEIGHT])).all(1).any())


def _name(info: Path) -> str:
    return info.name.removesuffix("_info.mat")

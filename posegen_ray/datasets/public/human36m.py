"""Human3.6M (Ionescu et al. 2014), protocol 2: S9 and S11, one camera, every 5th frame.

    S9/, S11/
      MyPoseFeatures/D3_Positions_mono/<action>.<camera>.cdf   Pose [1, N, 96]: 32 joints, mm,
                                                               camera axes
      MySegmentsMat/ground_truth_bb/<action>.<camera>.mat      HDF5, Masks [N, 1]: references to
                                                               masks whose ones are the box
      Videos/<action>.<camera>.mp4
    images/S9_<action>.<camera>_000001.jpg …                   instead of Videos, frame i is number
                                                               i + 1 and blanks in the action are _

The sequence "_ALL" is none. SPIN's preprocessing drops each video's first frame before it counts,
so its pictures are one frame (20 ms) late: `video_offset=1` reads those; the last pose then has no
picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from posegen_ray.config import DatasetConfig
from posegen_ray.datasets.files import open_hdf5, read_image, video_frames
from posegen_ray.datasets.public.frames import (
    AROUND_PERSON,
    Box,
    Frame,
    PublicSet,
    missing_pictures,
    require_complete,
)
from posegen_ray.errors import AssetError, DataError

SOURCE = (
    "Human3.6M is licensed to academics at http://vision.imar.ro/human3.6m "
    "(D3_Positions_mono, segment boxes and videos of S9 and S11)."
)
SUBJECTS = ("S9", "S11")
_JOINTS = 32
# where each of skeleton.H36M_JOINT_NAMES is among the file's joints
_ORDER = [11, 6, 7, 8, 1, 2, 3, 12, 24, 14, 15, 17, 18, 19, 25, 26, 27]


@dataclass(frozen=True)
class _Sequence:
    """One video's measured frames."""

    name: str  # e.g. S9/Directions 1
    frames: list[int]  # of the poses
    video: Path
    pictures: list[Path]  # instead of the video; empty: there are none
    boxes: list[Box]
    joints: np.ndarray  # [F, 17, 3] metres


class Human36m(PublicSet):
    """Human3.6M's frames of protocol 2.

    Raises:
        DataError: files are missing (all are listed), or one is damaged.
        AssetError: a package that reads its files (cdflib, h5py, av) is not installed.
    """

    title = "Human3.6M protocol 2"
    boxes = AROUND_PERSON

    def __init__(self, root: Path, config: DatasetConfig) -> None:
        super().__init__(config)
        self._config = config
        self._images = root / "images" if (root / "images").is_dir() else None
        missing: list[str] = []
        files: list[Path] = []
        for subject in SUBJECTS:
            folder = root / subject / "MyPoseFeatures" / "D3_Positions_mono"
            found = [
                file
                for file in sorted(folder.glob(f"*.{config.camera}.cdf"))
                if not file.name.startswith("_ALL")
            ]
            missing += [] if found else [f"{folder}/*.{config.camera}.cdf"]
            files += found
        for file in files:
            needed = [_boxes(file)] if self._images else [_boxes(file), _video(file)]
            missing += [str(path) for path in needed if not path.is_file()]
        if missing:
            require_complete(self.title, missing, SOURCE)
        self._sequences = [self._sequence(file) for file in files]
        names = [path.name for sequence in self._sequences for path in sequence.pictures]
        if self._images:
            require_complete(self.title, missing_pictures(self._images, names), SOURCE)

    def __len__(self) -> int:
        return sum(len(sequence.frames) for sequence in self._sequences)

    def __iter__(self) -> Iterator[Frame]:
        for sequence in self._sequences:
            for row, (label, pixels) in enumerate(self._pixels(sequence)):
                box, joints = sequence.boxes[row], sequence.joints[row]
                yield Frame(label, pixels, box, sequence.name, joints, None)

    def _pixels(self, sequence: _Sequence) -> Iterator[tuple[str, np.ndarray]]:
        """The frames' labels and pictures."""
        if self._images is None:
            numbers = [frame + self._config.video_offset for frame in sequence.frames]
            for frame, pixels in zip(
                sequence.frames, video_frames(sequence.video, numbers), strict=True
            ):
                yield f"{sequence.video} (frame {frame})", pixels
        else:
            for frame, path in zip(sequence.frames, sequence.pictures, strict=True):
                label = f"{path} (frame {frame})"
                yield label, read_image(path, label)

    def _sequence(self, file: Path) -> _Sequence:
        subject, (action, camera, _) = _subject(file), file.name.split(".")
        poses = _read_poses(file)
        frames = list(range(0, len(poses), self._config.every))
        pictures: list[Path] = []
        if self._images is None:
            last = len(poses) - self._config.video_offset
            self._leave_out("after the video's end", sum(frame >= last for frame in frames))
            frames = [frame for frame in frames if frame < last]
        else:
            stem = f"{subject}_{action.replace(' ', '_')}.{camera}"
            pictures = [self._images / f"{stem}_{frame + 1:06d}.jpg" for frame in frames]
        return _Sequence(
            f"{subject}/{action}",
            frames,
            _video(file),
            pictures,
            _read_boxes(_boxes(file), frames),
            poses[frames][:, _ORDER] / 1000,
        )


def _subject(file: Path) -> str:
    return file.parents[2].name


def _boxes(file: Path) -> Path:
    folder = file.parents[2] / "MySegmentsMat" / "ground_truth_bb"
    return folder / file.with_suffix(".mat").name


def _video(file: Path) -> Path:
    return file.parents[2] / "Videos" / file.with_suffix(".mp4").name


def _read_poses(
    file: Path,
) -> np.ndarray:  # [N, 32, 3] mm
    try:
        import cdflib
    except ImportError as error:
        raise AssetError(
            f"Reading {file} needs the package cdflib.",
            "Install it: pip install 'posegen-ray[public-sets]'",
        ) from error
    try:
        poses = np.asarray(cdflib.CDF(str(file)).varget("Pose"), np.float64)
    except Exception as error:  # cdflib raises many kinds for damaged files
        raise DataError(
            f"{file} cannot be read ({type(error).__name__}: {error}).",
            "It may be truncated; copy it again.",
        ) from error
    if poses.shape[-1:] != (3 * _JOINTS,):
        raise DataError(f"{file}: Pose has shape {poses.shape}, not [1, N, 96].", SOURCE)
    joints: np.ndarray = poses.reshape(-1, _JOINTS, 3)
    return joints


def _read_boxes(file: Path, frames: list[int]) -> list[Box]:
    boxes = []
    with open_hdf5(file) as content:
        references = content["Masks"]
        for frame in frames:
            if frame >= len(references):
                raise DataError(
                    f"{file} has {len(references)} masks: frame {frame} has no box.", SOURCE
                )
            # HDF5 of MATLAB: the axes are exchanged
            columns, rows = np.nonzero(np.asarray(content[references[frame, 0]]) == 1)
            if not len(columns):
                raise DataError(f"{file} (frame {frame}): the box is empty.", SOURCE)
            ends = columns.max() + 1, rows.max() + 1
            boxes.append(Box(*map(float, (columns.min(), rows.min(), *ends))))
    return boxes

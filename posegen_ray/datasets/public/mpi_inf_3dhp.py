"""MPI-INF-3DHP's test set (Mehta et al. 2017): six sequences, 3D joints by markerless capture.

    TS1 … TS6/ (also under mpi_inf_3dhp_test_set/)
      annot_data.mat, HDF5: N frames, 17 joints in its own order (`_ORDER`)
        valid_frame [N, 1]             0 where the annotation is not to be used
        annot2 [N, 1, 17, 2]           pixels
        annot3 [N, 1, 17, 3]           mm, camera axes, the person's true size
        univ_annot3 [N, 1, 17, 3]      mm, scaled to a knee-to-neck height common to all people
      imageSequence/img_000001.jpg …   frame i is number i + 1

Published numbers are on univ_annot3; annot3 gives others, since estimators guess a mean size.
SPIN's evaluation also leaves out frames with a joint outside the picture (`inside_only`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from posegen_ray.config import DatasetConfig
from posegen_ray.datasets.files import open_hdf5, read_image
from posegen_ray.datasets.public.frames import (
    Box,
    Frame,
    PublicSet,
    box_around,
    missing_pictures,
    require_complete,
)
from posegen_ray.errors import DataError

SOURCE = (
    "MPI-INF-3DHP is free for non-commercial research at "
    "https://vcai.mpi-inf.mpg.de/3dhp-dataset (mpi_inf_3dhp_test_set.zip)."
)
SEQUENCES = ("TS1", "TS2", "TS3", "TS4", "TS5", "TS6")
# where each of skeleton.H36M_JOINT_NAMES is among the file's joints
_ORDER = [14, 11, 12, 13, 8, 9, 10, 15, 1, 16, 0, 5, 6, 7, 2, 3, 4]


@dataclass(frozen=True)
class _Entry:
    label: str
    sequence: str
    picture: Path
    box: Box
    joints: np.ndarray  # [17, 3] metres


class MpiInf3dhp(PublicSet):
    """The test set of MPI-INF-3DHP.

    Raises:
        DataError: files are missing (all are listed), or one is damaged.
        AssetError: the package h5py is not installed.
    """

    title = "MPI-INF-3DHP test"

    def __init__(self, root: Path, config: DatasetConfig) -> None:
        super().__init__(config)
        self._config = config
        inner = root / "mpi_inf_3dhp_test_set"
        folder = inner if inner.is_dir() else root
        files = {name: folder / name / "annot_data.mat" for name in SEQUENCES}
        missing = [str(file) for file in files.values() if not file.is_file()]
        annotated = {
            name: self._annotations(file) for name, file in files.items() if file.is_file()
        }
        for name, (valid, _, _) in annotated.items():
            pictures = (_picture(frame) for frame in np.flatnonzero(valid).tolist())
            missing += missing_pictures(folder / name / "imageSequence", pictures)
        require_complete(self.title, missing, SOURCE)
        self._entries = [
            entry for name in SEQUENCES for entry in self._sequence(folder / name, *annotated[name])
        ]

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Frame]:
        for entry in self._entries:
            pixels = read_image(entry.picture, entry.label)
            yield Frame(entry.label, pixels, entry.box, entry.sequence, entry.joints, None)

    def _annotations(self, file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """valid [N], points [N, 17, 2] and joints [N, 17, 3] (mm), in the file's order."""
        with open_hdf5(file) as content:
            valid = np.asarray(content["valid_frame"]).ravel() > 0
            points = np.asarray(content["annot2"], np.float64)
            joints = np.asarray(content[self._config.annotation], np.float64)
        count = len(valid)
        for name, array, width in (("annot2", points, 2), (self._config.annotation, joints, 3)):
            if array.shape != (count, 1, 17, width):
                raise DataError(
                    f"{file}: {name} has shape {array.shape}, not {(count, 1, 17, width)}.", SOURCE
                )
        return valid, points[:, 0], joints[:, 0]

    def _sequence(
        self,
        folder: Path,
        valid: np.ndarray,  # [N]
        points: np.ndarray,  # [N, 17, 2] pixels
        joints: np.ndarray,  # [N, 17, 3] mm
    ) -> Iterator[_Entry]:
        self._leave_out("valid_frame is 0", int((~valid).sum()))
        for frame in np.flatnonzero(valid).tolist():
            picture = folder / "imageSequence" / _picture(frame)
            label = f"{picture} (frame {frame})"
            if self._config.inside_only and not _inside(points[frame], picture, label):
                self._leave_out("a joint outside the picture")
                continue
            yield _Entry(
                label,
                folder.name,
                picture,
                box_around(points[frame]),
                joints[frame, _ORDER] / 1000,
            )


def _picture(frame: int) -> str:
    return f"img_{frame + 1:06d}.jpg"


def _inside(points: np.ndarray, picture: Path, label: str) -> bool:
    try:
        with Image.open(picture) as opened:
            size = opened.size  # the file's head only
    except OSError as error:
        raise DataError(f"{label} cannot be read ({error}).", "Copy it again.") from error
    return bool(((points >= 0) & (points < size)).all())

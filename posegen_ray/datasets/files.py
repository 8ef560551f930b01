"""Reading pictures, masks, videos, MATLAB and HDF5 files; what is wrong is named with its file."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from scipy.io import loadmat

from posegen_ray.errors import AssetError, DataError

if TYPE_CHECKING:
    import av
    import h5py

EXTRA = "pip install 'posegen-ray[captures]'"
_LABELS = 128  # masks whose greatest value is below are labels, not grey


def read_image(path: Path, label: str) -> np.ndarray:  # [H, W, 3] uint8
    """An RGB picture.

    Raises:
        DataError: it is missing or damaged; `label` says which frame it is of.
    """
    return np.asarray(_open(path, label, "picture").convert("RGB"))


def read_mask(path: Path, label: str) -> np.ndarray:  # [H, W] uint8
    """A mask of the person, 255 on it; palettes and colours count as labels: 0 is the background.

    Raises:
        DataError: as `read_image`.
    """
    picture = _open(path, label, "mask")
    if picture.mode in ("RGB", "RGBA"):
        return as_mask(np.asarray(picture)[..., :3].max(-1))
    if picture.mode == "LA":
        return as_mask(np.asarray(picture)[..., 0])
    return as_mask(np.asarray(picture))


def as_mask(
    values: np.ndarray,  # [H, W]
) -> np.ndarray:  # [H, W] uint8
    """0/1, labels (below 128) or 0 to 255 with soft edges -> 255 on the person."""
    if values.dtype == np.uint8 and values.max(initial=0) >= _LABELS:
        return values
    return np.where(values > 0, 255, 0).astype(np.uint8)


def read_video(
    path: Path,
    wanted: Sequence[int],  # ascending
    count: int,  # frames that there should be
    counted: str,  # what says so
) -> list[np.ndarray]:  # [H, W, 3] uint8 each
    """Frames of a video, RGB.

    Raises:
        DataError: the video is missing or damaged, or has another number of frames.
        AssetError: the package `av` is not installed.
    """
    frames: list[np.ndarray] = []
    chosen = set(wanted)
    found = 0
    for frame in _decoded(path):
        if found in chosen:
            frames.append(frame.to_ndarray(format="rgb24"))
        found += 1
    if found != count:
        raise DataError(
            f"{path} has {found} frames, but {counted} has {count}: frame {min(found, count)} is "
            "only in one of them.",
            "Cut them to the same frames.",
        )
    return frames


def video_frames(
    path: Path,
    wanted: Sequence[int],  # ascending
) -> Iterator[np.ndarray]:  # [H, W, 3] uint8 each
    """Frames of a video, RGB, one at a time; what comes after the last one is not decoded.

    Raises:
        DataError: the video is missing or damaged, or ends before a wanted frame.
        AssetError: the package `av` is not installed.
    """
    waiting = list(reversed(wanted))
    found = 0
    for found, frame in enumerate(_decoded(path), 1):
        if waiting and found - 1 == waiting[-1]:
            yield frame.to_ndarray(format="rgb24")
            waiting.pop()
        if not waiting:
            return
    if waiting:
        raise DataError(
            f"{path} has {found} frames: frame {waiting[-1]} is missing.",
            "It may be truncated; copy it again.",
        )


def _decoded(path: Path) -> Iterator[av.VideoFrame]:
    """All frames of a video."""
    try:
        import av
    except ImportError as error:
        raise AssetError(f"Reading {path} needs the package av.", f"Install it: {EXTRA}") from error
    if not path.is_file():
        raise DataError(f"{path} is missing.", "It holds the pictures.")
    found = 0
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                yield frame
                found += 1
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read after frame {found} ({error}).",
            "It may be truncated; copy it again.",
        ) from error


def read_mat(path: Path, names: Sequence[str] | None = None) -> dict[str, Any]:
    """The variables of a MATLAB file (before version 7.3, which is HDF5).

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        return dict(loadmat(str(path), appendmat=False, variable_names=names))
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing.", "Is the download complete?") from error
    except Exception as error:  # scipy raises half a dozen kinds for damaged files
        raise DataError(
            f"{path} cannot be read ({type(error).__name__}: {error}).",
            "It may be truncated; copy it again.",
        ) from error


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file, open for reading.

    Raises:
        DataError: it is missing or damaged, or lacks what is read from it.
        AssetError: the package `h5py` is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise AssetError(
            f"Reading {path} needs the package h5py.", f"Install it: {EXTRA}"
        ) from error
    if not path.is_file():
        raise DataError(f"{path} is missing.", "Is the download complete?")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except KeyError as error:
        raise DataError(f"{path} lacks a data set ({error}).", "Is it the right file?") from error
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error}).", "It may be truncated; copy it again."
        ) from error


def _open(path: Path, label: str, kind: str) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(path.read_bytes()))
        picture.load()
    except FileNotFoundError as error:
        raise DataError(
            f"{path} ({label}) is missing.", f"Every frame needs its {kind}; add it."
        ) from error
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        raise DataError(
            f"{path} ({label}) cannot be read ({error}).", "It may be truncated; copy it again."
        ) from error
    return picture

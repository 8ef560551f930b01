"""The interface of a format, and how its files reach the disk: whole, or not at all.

A set is written shard by shard, in any order and by many processes; a shard may be written twice,
with the same bytes. What only an unfinished set needs lies in its folder `.progress`.
"""

from __future__ import annotations

import io
import zipfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import numpy as np
from PIL import Image

from posegen_ray.datasets.formats.labels import About, Array, Labels, concatenate_labels
from posegen_ray.errors import DataError
from posegen_ray.files import whole_file

PROGRESS = ".progress"
MANIFEST = "manifest.json"
_JPEG_QUALITY = 95


@dataclass(frozen=True)
class Shard:
    """Which images of a set are written together."""

    number: int
    first: int  # index of its first image in the set
    images: int

    @property
    def name(self) -> str:
        return f"{self.number:06d}"

    @property
    def keys(self) -> list[str]:
        """The names of its images, without their extension."""
        return [f"{index:08d}" for index in range(self.first, self.first + self.images)]


@dataclass(frozen=True)
class Example:
    """One image of a set, and what `posegen dataset show` draws on it."""

    name: str
    image: Array  # [H, W, 3] uint8
    joints_2d: Array  # [12, 2] pixels of the limb joints (LIMB_JOINT_NAMES)
    caption: str


class Dataset(Protocol):
    """A finished set. Holds no more images in memory than it was asked for, and one part of a file
    (a row group, a tar's table) to find them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class Format(Protocol):
    """A layout on disk."""

    def write_shard(
        self,
        folder: Path,
        shard: Shard,
        images: Array,  # [N, H, W, 3] uint8
        labels: Labels,
        about: About,
    ) -> None:
        """Writes a shard; when it returns the shard is on disk."""

    def finish(self, folder: Path, shards: list[Shard], about: About) -> None:
        """Makes a set of the shards. May run again after an interruption."""

    def open(self, folder: Path) -> Dataset:
        """Opens a finished set.

        Raises:
            DataError: files are missing or damaged.
        """


def save_arrays(file: IO[bytes], arrays: dict[str, Array]) -> None:
    """Writes an npz file: the same bytes for the same arrays."""
    np.savez(file, **arrays)  # type: ignore[arg-type]  # its last argument has a type of its own


def encode_image(image: Array, extension: str) -> bytes:
    """A picture [H, W, 3] uint8 as the bytes of a PNG (lossless) or a JPEG."""
    buffer = io.BytesIO()
    picture = Image.fromarray(image)
    if extension == "png":
        picture.save(buffer, "PNG", compress_level=1)  # thrice as fast as 6, a fifth larger
    else:
        picture.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def decode_image(source: bytes | Path) -> Array:  # [H, W, 3] uint8
    """The picture in a file or in its bytes.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
            return np.asarray(picture.convert("RGB"))
    except OSError as error:
        name = "A picture in the set" if isinstance(source, bytes) else str(source)
        raise DataError(f"{name} cannot be read ({error}).", "Generate the set again.") from error


# --- formats of image files beside one table of labels ------------------------------------------


class ImageFolder(ABC):
    """Common to the formats that keep images/*.png beside one npz file of all labels.

    Until the set is finished each shard's labels wait in `.progress`; 3 KB an image are in memory
    when they are put together.
    """

    file = "labels.npz"

    @abstractmethod
    def fields(self, names: list[str], labels: Labels, about: About) -> dict[str, Array]:
        """The arrays of the npz file, one row an image, `names` relative to the set's folder."""

    def write_shard(
        self, folder: Path, shard: Shard, images: Array, labels: Labels, about: About
    ) -> None:
        for name, image in zip(_image_names(shard, about), images, strict=True):
            with whole_file(folder / name) as file:
                file.write(encode_image(image, about.extension))
        with whole_file(_kept_labels(folder, shard)) as file:
            save_arrays(file, labels.arrays())

    def finish(self, folder: Path, shards: list[Shard], about: About) -> None:
        parts, names = [], []
        for shard in shards:
            with np.load(_kept_labels(folder, shard)) as arrays:
                parts.append(Labels(**arrays))
            names += _image_names(shard, about)
        with whole_file(folder / self.file) as file:
            save_arrays(file, self.fields(names, concatenate_labels(parts), about))


def _image_names(shard: Shard, about: About) -> list[str]:
    return [f"images/{key}.{about.extension}" for key in shard.keys]


def _kept_labels(folder: Path, shard: Shard) -> Path:
    return folder / PROGRESS / f"labels-{shard.name}.npz"


class ImageFolderSet:
    """Opens such a set. Holds the columns that are drawn; images are read one at a time.

    Args:
        file: the npz file; image names are relative to its folder.
        names: column of image names.
        joints: column of 2D joints [N, J, 2 or more] and the rows of the 12 limb joints in it.
        caption: columns that a sample's caption shows.
    """

    def __init__(
        self, file: Path, names: str, joints: tuple[str, list[int]], caption: tuple[str, ...]
    ) -> None:
        column, rows = joints
        try:
            with np.load(file) as arrays:
                self._names = arrays[names]
                self._joints_2d = arrays[column][:, rows, :2]
                self._captions = [arrays[name] for name in caption if name in arrays]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(
                f"{file} cannot be read ({error}).", "Generate the set again."
            ) from error
        self._folder = file.parent

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Example:
        name = str(self._names[index])
        return Example(
            name,
            decode_image(self._folder / name),
            self._joints_2d[index],
            " ".join(str(column[index]) for column in self._captions),
        )

"""WebDataset: tar shards of {key}.png (or .jpg) and {key}.json, for streaming at scale.

Headers are the same whoever writes them, and whenever: a shard is its samples' bytes alone.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np

from posegen_ray.body.skeleton import LIMB_JOINTS
from posegen_ray.datasets.formats.base import Dataset, Example, Shard, decode_image, encode_image
from posegen_ray.datasets.formats.labels import About, Array, Labels
from posegen_ray.errors import DataError
from posegen_ray.files import whole_file


class WebDatasetFormat:
    """shard-*.tar; the JSON of a sample holds every field of `Labels` as nested lists."""

    def write_shard(
        self, folder: Path, shard: Shard, images: Array, labels: Labels, about: About
    ) -> None:
        arrays = labels.arrays()
        with (
            whole_file(folder / f"shard-{shard.name}.tar") as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for row, (key, image) in enumerate(zip(shard.keys, images, strict=True)):
                values = {name: column[row].tolist() for name, column in arrays.items()}
                _add(tar, f"{key}.{about.extension}", encode_image(image, about.extension))
                _add(tar, f"{key}.json", json.dumps(values).encode())

    def finish(self, folder: Path, shards: list[Shard], about: About) -> None:
        pass

    def open(self, folder: Path) -> Dataset:
        return WebDatasetSet(sorted(folder.glob("shard-*.tar")))


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # no time, no owner
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


class WebDatasetSet:
    """Opens such files, for random access too: a table of where each sample lies in its tar."""

    def __init__(self, files: list[Path]) -> None:
        self._files = files
        places: list[tuple[int, int, int, int, int]] = []  # file, image's offset, size, and labels'
        try:
            for number, file in enumerate(files):
                with tarfile.open(file, "r:") as tar:
                    members = [(member.offset_data, member.size) for member in tar]
                for image, text in zip(members[::2], members[1::2], strict=True):
                    places.append((number, *image, *text))
        except (OSError, ValueError, tarfile.TarError) as error:
            raise DataError(f"{file} cannot be read ({error}).", "Generate it again.") from error
        self._places = np.array(places, np.int64).reshape(-1, 5)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Example:
        number, start, size, text_start, text_size = self._places[index].tolist()
        with open(self._files[number], "rb") as file:
            file.seek(start)
            image = file.read(size)
            file.seek(text_start)
            labels = json.loads(file.read(text_size))
        joints = np.array(labels["joints_2d"], np.float32)[list(LIMB_JOINTS)]
        caption = f"{labels['subject']} {labels['clip']}"
        return Example(f"{index:08d}", decode_image(image), joints, caption)

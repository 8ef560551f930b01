"""Layouts in which sets of labelled images are written and opened again: docs/datasets.md."""

from __future__ import annotations

from pathlib import Path

from posegen_ray.datasets.formats.base import MANIFEST, PROGRESS, Dataset, Format
from posegen_ray.datasets.formats.bedlam import BedlamFormat
from posegen_ray.datasets.formats.folder import FolderFormat
from posegen_ray.datasets.formats.parquet import ParquetFormat
from posegen_ray.datasets.formats.spin import SpinFormat
from posegen_ray.datasets.formats.webdataset import WebDatasetFormat
from posegen_ray.errors import DataError
from posegen_ray.files import read_json

FORMATS: dict[str, Format] = {
    "folder": FolderFormat(),
    "parquet": ParquetFormat(),
    "webdataset": WebDatasetFormat(),
    "spin": SpinFormat(),
    "bedlam": BedlamFormat(),
}


def open_dataset(folder: Path) -> Dataset:
    """Opens a finished set, whatever its format.

    Raises:
        DataError: there is no finished set in the folder, or it is damaged.
    """
    if not (folder / MANIFEST).is_file():
        if (folder / PROGRESS).is_dir():
            raise DataError(
                f"{folder} is not finished.",
                "Run the `posegen generate` that began it again: it goes on where it stopped.",
            )
        raise DataError(
            f"{folder} holds no {MANIFEST}.", "Name a folder that `posegen generate` wrote."
        )
    name = read_json(folder / MANIFEST).get("format")
    if name not in FORMATS:
        raise DataError(
            f"{folder / MANIFEST} names the format {name!r}.", f"Known: {', '.join(FORMATS)}."
        )
    return FORMATS[name].open(folder)

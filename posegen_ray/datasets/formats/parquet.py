"""Parquet: one file a shard, one row a sample, the image's bytes in a column.

Arrays are fixed-size lists, flattened; the shape stands in the column's metadata ("shape").
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from posegen_ray.body.skeleton import LIMB_JOINTS, NUM_JOINTS
from posegen_ray.datasets.formats.base import Dataset, Example, Shard, decode_image, encode_image
from posegen_ray.datasets.formats.labels import About, Array, Labels
from posegen_ray.errors import DataError
from posegen_ray.files import whole_file

_ROW_GROUP = 64  # rows that a reader has in memory at once


class ParquetFormat:
    """shard-*.parquet with columns key, image and every field of `Labels`."""

    def write_shard(
        self, folder: Path, shard: Shard, images: Array, labels: Labels, about: About
    ) -> None:
        encoded = [encode_image(image, about.extension) for image in images]
        columns = {"key": pa.array(shard.keys), "image": pa.array(encoded, pa.binary())}
        shapes = {}
        for name, values in labels.arrays().items():
            columns[name] = _column(values)
            if values.ndim > 1:
                shapes[name] = {"shape": ",".join(map(str, values.shape[1:]))}
        table = pa.table(
            list(columns.values()),
            schema=pa.schema(
                [pa.field(n, c.type, metadata=shapes.get(n)) for n, c in columns.items()]
            ),
        )
        with whole_file(folder / f"shard-{shard.name}.parquet") as file:
            pq.write_table(table, file, row_group_size=_ROW_GROUP)

    def finish(self, folder: Path, shards: list[Shard], about: About) -> None:
        pass

    def open(self, folder: Path) -> Dataset:
        return ParquetSet(sorted(folder.glob("shard-*.parquet")))


def _column(values: Array) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values.tolist() if values.dtype.kind == "U" else values)
    width = int(np.prod(values.shape[1:]))
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width)


class ParquetSet:
    """Opens such files, one row group at a time."""

    def __init__(self, files: list[Path]) -> None:
        self._groups: list[tuple[Path, int]] = []
        ends = [0]
        try:
            for file in files:
                footer = pq.read_metadata(file)
                for group in range(footer.num_row_groups):
                    self._groups.append((file, group))
                    ends.append(ends[-1] + footer.row_group(group).num_rows)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{file} cannot be read ({error}).", "Generate it again.") from error
        self._ends = np.array(ends)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Example:
        number = int(np.searchsorted(self._ends, index, side="right")) - 1
        file, group = self._groups[number]
        columns = ["key", "image", "joints_2d", "subject", "clip"]
        rows = pq.ParquetFile(file).read_row_group(group, columns)
        row = {name: rows[name][index - int(self._ends[number])].as_py() for name in columns}
        joints = np.array(row["joints_2d"], np.float32).reshape(NUM_JOINTS, 2)
        return Example(
            row["key"],
            decode_image(row["image"]),
            joints[list(LIMB_JOINTS)],
            f"{row['subject']} {row['clip']}",
        )

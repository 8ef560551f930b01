"""What every format keeps, and how each looks to readers that know nothing of us."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from made_sets import GENERATORS, SIZE, distance, files_of, make_samples, write_set
from PIL import Image

from posegen_ray.body.model import BodyModel
from posegen_ray.config import EXPORT_FORMATS
from posegen_ray.datasets.formats import FORMATS, open_dataset
from posegen_ray.errors import DataError
from posegen_ray.export import picture_dataset
from posegen_ray.files import whole_file

every_format = pytest.mark.parametrize("name", EXPORT_FORMATS)


def test_configuration_names_every_format() -> None:
    assert set(EXPORT_FORMATS) == set(FORMATS)


def test_labels_say_where_the_person_stands(body: BodyModel, tmp_path: Path) -> None:
    """Translation and all 24 joints follow from the 12 limb joints of a sample."""
    samples, labels, truth = write_set(tmp_path, "folder", body, count=40)
    assert distance(labels.translation, truth.translation) < 2e-5
    assert distance(labels.joints, truth.in_camera) < 2e-5
    ones = np.ones((40, 24, 1))
    placed = labels.extrinsics @ np.concatenate([truth.in_world, ones], -1).transpose(0, 2, 1)
    assert distance(placed[:, :3].transpose(0, 2, 1), labels.joints) < 2e-5
    pixels = labels.joints @ labels.intrinsics.transpose(0, 2, 1)
    assert distance(pixels[..., :2] / pixels[..., 2:], labels.joints_2d) < 1e-3
    assert labels.generator.tolist() == [GENERATORS[seed % 2] for seed in range(40)]
    assert np.array_equal(labels.seed, samples.seeds)


def test_no_samples_are_no_trouble(body: BodyModel) -> None:
    samples, _ = make_samples(body, [])
    assert len(samples) == 0


@every_format
def test_set_opens_with_its_images_and_joints(name: str, body: BodyModel, tmp_path: Path) -> None:
    samples, _, _ = write_set(tmp_path / "set", name, body)
    dataset = open_dataset(tmp_path / "set")
    assert len(dataset) == 7
    for index in (6, 0, 3):
        example = dataset[index]
        assert np.array_equal(example.image, samples.images[index].permute(1, 2, 0))
        assert distance(example.joints_2d, samples.joints_2d[index]) < 1e-3


@every_format
def test_same_samples_are_the_same_bytes(name: str, body: BodyModel, tmp_path: Path) -> None:
    write_set(tmp_path / "one", name, body, extension="jpg")
    write_set(tmp_path / "other", name, body, extension="jpg")
    one, other = files_of(tmp_path / "one"), files_of(tmp_path / "other")
    assert one == other
    assert not [file for file in one if "partial" in file or "progress" in file]


@every_format
def test_sheet_shows_random_samples(name: str, body: BodyModel, tmp_path: Path) -> None:
    write_set(tmp_path / "set", name, body)
    file = tmp_path / "sheet.png"
    assert picture_dataset(tmp_path / "set", 4, out=str(file)) == str(file)
    with Image.open(file) as sheet:
        assert sheet.size == (2 * 320 + 4, 2 * (320 + 16) + 4)
    before = file.read_bytes()
    picture_dataset(tmp_path / "set", 4, seed=1, out=str(file))
    assert file.read_bytes() != before


@every_format
def test_damaged_set_is_named(name: str, body: BodyModel, tmp_path: Path) -> None:
    write_set(tmp_path, name, body)
    victim = next(f for f in sorted(tmp_path.iterdir()) if f.suffix in (".npz", ".parquet", ".tar"))
    victim.write_bytes(victim.read_bytes()[:100])
    with pytest.raises(DataError, match=victim.name):
        open_dataset(tmp_path)


def test_folder_without_a_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no manifest\.json"):
        open_dataset(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": "coco"}')
    with pytest.raises(DataError, match="'coco'"):
        open_dataset(tmp_path)


def test_parquet_is_a_table_of_rows(body: BodyModel, tmp_path: Path) -> None:
    _, labels, _ = write_set(tmp_path, "parquet", body)
    table = pd.concat([pd.read_parquet(file) for file in sorted(tmp_path.glob("*.parquet"))])
    assert table["key"].tolist() == [f"{index:08d}" for index in range(7)]
    assert Image.open(io.BytesIO(table["image"].iloc[2])).size == (SIZE, SIZE)
    schema = pq.read_schema(tmp_path / "shard-000000.parquet")
    for name, values in labels.arrays().items():
        column = np.stack(table[name].to_list())
        if values.ndim > 1:
            assert schema.field(name).metadata
            shape = schema.field(name).metadata[b"shape"].decode().split(",")
            column = column.reshape(-1, *map(int, shape))
        assert np.array_equal(column, values), name


def test_webdataset_samples_lie_together_in_plain_tars(body: BodyModel, tmp_path: Path) -> None:
    _, labels, _ = write_set(tmp_path, "webdataset", body, extension="jpg")
    row = 0
    for file in sorted(tmp_path.glob("*.tar")):
        with tarfile.open(file) as tar:
            members = tar.getmembers()
            assert {(m.mtime, m.uid, m.gid, m.mode, m.uname) for m in members} == {
                (0, 0, 0, 0o644, "")
            }
            for image, text in zip(members[::2], members[1::2], strict=True):
                assert (image.name, text.name) == (f"{row:08d}.jpg", f"{row:08d}.json")
                stream = tar.extractfile(text)
                assert stream is not None
                values = json.load(stream)
                for name, column in labels.arrays().items():
                    assert np.array_equal(np.array(values[name], column.dtype), column[row]), name
                row += 1
    assert row == 7


def test_file_that_cannot_be_finished_leaves_nothing(tmp_path: Path) -> None:
    def write() -> None:
        with whole_file(tmp_path / "labels.npz") as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write()
    assert not list(tmp_path.iterdir())

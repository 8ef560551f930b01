"""Sets are written once: whole after a kill, refused where they would be mixed with another."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pandas as pd
import pytest
from made_sets import files_of
from small_generation import generate

from posegen_ray import export
from posegen_ray.datasets.formats import open_dataset
from posegen_ray.errors import ConfigError, DataError

IMAGES = 22  # five shards of 4 and one of 2


@pytest.fixture(scope="module")
def forks() -> Iterator[ForkServerContext]:
    """Starts processes as copies of one that has imported all they need, and has no threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["small_generation"])
    here = Path(__file__).parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (here, *list(here.parents)[:2]))))
        yield context


def kill_when(
    pattern: str, count: int, out: Path, format_name: str, forks: ForkServerContext
) -> None:
    """Starts writing a set in another process, and kills it once so many files are there."""
    process = forks.Process(target=generate, args=(out, format_name, IMAGES, 0.1))
    process.start()
    end = time.monotonic() + 120
    while len(list(out.glob(pattern))) < count:
        if not process.is_alive() or time.monotonic() > end:
            process.kill()
            pytest.fail(f"{pattern} did not appear; exit code {process.exitcode}")
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("format_name", "pattern", "count"),
    [
        ("webdataset", "shard-*.tar", 3),
        ("spin", "images/*.png", 10),  # between the images of a shard
    ],
)
def test_killed_and_started_again_ends_with_the_same_set(
    format_name: str, pattern: str, count: int, forks: ForkServerContext, tmp_path: Path
) -> None:
    out = tmp_path / "killed" / "set"
    kill_when(pattern, count, out, format_name, forks)
    assert not (out / "manifest.json").exists()
    with pytest.raises(DataError, match="not finished"):
        open_dataset(out)
    finished = len(list(out.glob(".progress/shard-*.json")))
    assert 2 <= finished < 6
    kept = {file: file.stat().st_mtime_ns for file in sorted(out.glob(pattern))[: 4 * finished]}
    kept = dict(list(kept.items())[: finished if format_name == "webdataset" else None])
    (out / ".shard-000000.tar.1.partial").write_bytes(b"half")  # of another kill
    generate(out, format_name, IMAGES)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept, "something was done twice"
    generate(tmp_path / "undisturbed" / "set", format_name, IMAGES)
    files = files_of(out)
    assert files == files_of(tmp_path / "undisturbed" / "set")
    assert not [name for name in files if name.startswith(".")]
    assert len(open_dataset(out)) == IMAGES


@pytest.mark.parametrize("format_name", ["folder", "parquet", "bedlam"])
def test_set_interrupted_before_its_last_file_is_finished(
    format_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_at_the_end(tmp_path / "set", format_name, monkeypatch)
    generate(tmp_path / "set", format_name, IMAGES)
    generate(tmp_path / "other" / "set", format_name, IMAGES)
    assert files_of(tmp_path / "set") == files_of(tmp_path / "other" / "set")


def interrupt_at_the_end(out: Path, format_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes all shards of a set, but no more."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(export, "finish_set", stop)
        with pytest.raises(KeyboardInterrupt):
            generate(out, format_name, IMAGES)


def test_manifest_says_what_the_set_is_made_of(tmp_path: Path) -> None:
    generate(tmp_path / "set", "parquet", IMAGES)
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert (manifest["format"], manifest["images"]) == ("parquet", IMAGES)
    assert manifest["shards"] == [4, 4, 4, 4, 4, 2]
    assert sum(manifest["images_by_subject"].values()) == IMAGES
    assert sum(manifest["images_by_generator"].values()) == IMAGES
    assert set(manifest["images_by_generator"]) == {"3", "4"}  # the later half
    assert manifest["proposals"]["valid"] == IMAGES < manifest["proposals"]["drawn"]
    assert manifest["subjects"]["ann"]["licence"] == "CC0"
    assert manifest["seed"] == {"root": 0, "stream": "generate"}
    assert "torch" in manifest["versions"]
    assert manifest["config"]["export"]["images_per_shard"] == 4


def test_no_sample_comes_twice(tmp_path: Path) -> None:
    generate(tmp_path / "set", "parquet", IMAGES)
    table = pd.concat(map(pd.read_parquet, sorted((tmp_path / "set").glob("*.parquet"))))
    assert table["key"].is_unique
    assert table["seed"].is_unique
    assert len(table) == IMAGES


def test_a_set_is_not_mixed_with_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "set"
    interrupt_at_the_end(out, "parquet", monkeypatch)
    with pytest.raises(ConfigError, match="another images: 22, now 9"):
        generate(out, "parquet", 9)
    with pytest.raises(ConfigError, match="another format: 'parquet', now 'spin'"):
        generate(out, "spin", IMAGES)
    generate(out, "parquet", IMAGES)
    with pytest.raises(DataError, match="finished set"):
        generate(out, "parquet", IMAGES)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").touch()
    with pytest.raises(DataError, match="not empty"):
        generate(other, "parquet", IMAGES)

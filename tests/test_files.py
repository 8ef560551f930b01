"""Files are whole or not there."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest

from posegen_ray.errors import DataError
from posegen_ray.files import read_json, sha256_of, whole_file, write_json


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with whole_file(path) as file:
            file.write(b"new")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_strict_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "file.json"
    write_json(path, {"a": [1.5, math.nan, np.float32(2), np.int64(3)], 4: (None, "ü", -math.inf)})
    assert read_json(path) == {"a": [1.5, None, 2.0, 3], "4": [None, "ü", None]}
    path.write_text(path.read_text()[:-5])
    with pytest.raises(DataError, match=r"file.json cannot be read"):
        read_json(path)


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 5000)  # more than it reads at once
    assert sha256_of(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert json.dumps(sha256_of(path)).strip('"').isalnum()

"""SMPL's file in its true layout, made once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from published_layouts import write_smpl


@pytest.fixture(scope="session")
def smpl(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("smpl")
    return folder, write_smpl(folder)

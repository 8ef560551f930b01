"""One small private Ray cluster for all tests of the runtime."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from posegen_ray.config import RuntimeConfig
from posegen_ray.runtime.session import RaySession


@pytest.fixture(scope="session")
def ray_session() -> Iterator[RaySession]:
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # workers unpickle the tests' stand-ins
    with RaySession(RuntimeConfig(num_cpus=6, object_store_mb=200)) as session:
        yield session

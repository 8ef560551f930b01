"""What all tests share: quiet threads, fixed seeds, no cluster authentication, a small subject."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["RAY_AUTH_MODE"] = "disabled"
sys.path.insert(0, str(Path(__file__).parent))  # for `import bodies`
sys.path.insert(1, str(Path(__file__).parents[1] / "benchmarks"))  # for `import scaling`

import pytest
import torch
from bodies import capsule_body, painted_subject
from parallel import Scheduler, place
from xdist.remote import Producer

from posegen_ray.body.model import BodyModel
from posegen_ray.subjects.store import VoxelSubject

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=place)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduler:
    return Scheduler(config, log)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """A test's chance is the same every time, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def body() -> BodyModel:
    """The capsule figure."""
    return capsule_body()


@pytest.fixture(scope="session")
def capsule_subject() -> VoxelSubject:
    """A capsule figure in striped colours, ready to be rendered."""
    return painted_subject()

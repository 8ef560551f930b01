import os

import pytest
import torch
from runtime_loops import QuadraticLoop

from posegen_ray.checkpoint_store import CheckpointStore
from posegen_ray.config import RoleResources, RuntimeConfig
from posegen_ray.context import LocalContext
from posegen_ray.errors import CheckpointError, ResourceError, TrainingError
from posegen_ray.runtime.train import fit_with_ray

CONFIG = RuntimeConfig(train_workers=2, train_resources=RoleResources(0.5))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return QuadraticLoop(5).run(LocalContext(tmp_path_factory.mktemp("alone")))["weight"]


def assert_same(result, weight):
    found, expected = torch.tensor(result["weight"]), torch.tensor(weight)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_local_run_resumes_to_the_same_numbers(tmp_path, uninterrupted):
    store = CheckpointStore(str(tmp_path), keep=1)
    QuadraticLoop(2).run(LocalContext(store))
    assert store.numbers() == [1]
    resumed = QuadraticLoop(5).run(LocalContext(store, resume=True))
    assert resumed["first"] == 2
    assert resumed["weight"] == uninterrupted


def test_local_run_does_not_overwrite_an_earlier_one(tmp_path):
    QuadraticLoop(1).run(LocalContext(tmp_path))
    with pytest.raises(CheckpointError, match=r"holds 1 checkpoint.*resume="):
        LocalContext(tmp_path)


def test_workers_come_and_go_and_the_numbers_stay(ray_session, tmp_path, uninterrupted):
    """One process, then two workers, then one that fails: by a store behind a URL. (Two, then one:
    `test_a_run_of_two_train_workers_goes_on_with_one`; killed: in tests/chaos, and in
    `test_ray_run_robbed_of_its_processes_equals_one_process`.)"""
    store = CheckpointStore(f"file://{tmp_path}/kept")
    QuadraticLoop(1).run(LocalContext(store))
    result = fit_with_ray(QuadraticLoop(5), CONFIG, store, tmp_path, resume=True)
    assert result.value["first"] == 1
    assert result.value["ranks"] == [0, 1]
    assert result.value["spread"] == [0, 0]
    assert result.value["working_folder"] == os.getcwd()  # for files that settings name
    assert result.metrics["round"] == 4
    assert_same(result.value, uninterrupted)
    alone = RuntimeConfig(train_resources=RoleResources(0.5))
    with pytest.raises(CheckpointError, match="earlier run"):
        fit_with_ray(QuadraticLoop(6), alone, store, tmp_path)
    with pytest.raises(TrainingError, match="round 5 were not finite"):
        fit_with_ray(QuadraticLoop(6, fail=True), alone, store, tmp_path, resume=True)


def test_workers_without_a_place_are_an_error_not_a_wait(ray_session, tmp_path):
    config = RuntimeConfig(
        train_workers=2, train_resources=RoleResources(64), train_start_s=1, max_train_failures=0
    )
    with pytest.raises(ResourceError, match=r"2 train workers of 64 .* did not start within 1 s"):
        fit_with_ray(QuadraticLoop(1), config, CheckpointStore(str(tmp_path / "kept")), tmp_path)

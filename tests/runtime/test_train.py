import pytest
import torch
from runtime_loops import QuadraticLoop

from posegen_ray.config import RoleResources, RuntimeConfig
from posegen_ray.context import LocalContext, local_checkpoints
from posegen_ray.errors import CheckpointError, ResourceError, TrainingError
from posegen_ray.runtime.train import fit_with_ray

CONFIG = RuntimeConfig(train_workers=2, train_resources=RoleResources(0.5), max_train_failures=1)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return QuadraticLoop(4).run(LocalContext(tmp_path_factory.mktemp("alone")))["weight"]


def test_local_run_resumes_to_the_same_numbers(tmp_path, uninterrupted):
    QuadraticLoop(2).run(LocalContext(tmp_path, keep=1))
    assert [folder.name for folder in local_checkpoints(tmp_path)] == ["checkpoint_000001"]
    resumed = QuadraticLoop(4).run(LocalContext(tmp_path, resume=True))
    assert resumed["first"] == 2
    assert resumed["weight"] == uninterrupted


def test_local_run_does_not_overwrite_an_earlier_one(tmp_path):
    QuadraticLoop(1).run(LocalContext(tmp_path))
    with pytest.raises(CheckpointError, match=r"holds 1 checkpoint.*resume="):
        LocalContext(tmp_path)


def test_local_run_leaves_checkpoints_of_ray_alone(tmp_path, uninterrupted):
    (tmp_path / "checkpoint_2026-11-24_12-05-33.753263").mkdir()
    assert QuadraticLoop(4).run(LocalContext(tmp_path, resume=True))["weight"] == uninterrupted


def test_killed_worker_resumes_and_two_workers_equal_one(ray_session, tmp_path, uninterrupted):
    loop = QuadraticLoop(4, marker=str(tmp_path / "killed"), die_at=2)
    result = fit_with_ray(loop, CONFIG, str(tmp_path / "runs"))
    assert (tmp_path / "killed").exists()
    assert result.value["first"] == 2
    assert result.value["ranks"] == [0, 1]
    assert result.value["spread"] == [0, 0]
    assert result.metrics["round"] == 3
    torch.testing.assert_close(
        torch.tensor(result.value["weight"]), torch.tensor(uninterrupted), rtol=1e-5, atol=1e-6
    )
    _check_continuation(tmp_path / "runs")


def _check_continuation(runs):
    """A finished or stopped run is not overwritten, but continued; errors come back as they are."""
    alone = RuntimeConfig(train_resources=RoleResources(0.5))
    with pytest.raises(CheckpointError, match="earlier run"):
        fit_with_ray(QuadraticLoop(5), alone, str(runs))
    with pytest.raises(TrainingError, match="round 4 were not finite"):
        fit_with_ray(QuadraticLoop(5, fail=True), alone, str(runs), resume=True)


def test_workers_without_a_place_are_an_error_not_a_wait(ray_session, tmp_path):
    config = RuntimeConfig(
        train_workers=2, train_resources=RoleResources(64), train_start_s=1, max_train_failures=0
    )
    with pytest.raises(ResourceError, match=r"2 train workers of 64 .* did not start within 1 s"):
        fit_with_ray(QuadraticLoop(1), config, str(tmp_path))

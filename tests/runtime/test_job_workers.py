"""Jobs end, or the wait for them does, with an explanation."""

import pytest
from runtime_fakes import PauseJob

from posegen_ray.config import RoleResources, RuntimeConfig
from posegen_ray.errors import DataError, ResourceError
from posegen_ray.runtime import job_workers
from posegen_ray.runtime.job_workers import JobWorkers

QUARTER = RoleResources(0.25)


@pytest.fixture(autouse=True)
def look_often(monkeypatch):
    monkeypatch.setattr(job_workers, "_LOOK_S", 0.2)


def ignore(count):
    pass


def results(config, jobs):
    workers = JobWorkers(config)
    try:
        return dict(workers.run(jobs, ignore, lambda: 0, "pausing"))
    finally:
        workers.close()


def test_every_job_is_done_once_and_named_by_its_number(ray_session):
    config = RuntimeConfig(job_workers=2, job_resources=QUARTER)
    jobs = [PauseJob(0.05 * (3 - number), answer=10 * number) for number in range(4)]
    assert results(config, jobs) == {0: 0, 1: 10, 2: 20, 3: 30}


def test_what_a_job_raises_comes_back(ray_session):
    config = RuntimeConfig(job_workers=1, job_resources=QUARTER)
    with pytest.raises(DataError, match="no picture"):
        results(config, [PauseJob(0, error=DataError("There is no picture."))])


def test_worker_without_a_place_is_an_error_not_a_wait(ray_session):
    config = RuntimeConfig(job_workers=1, job_resources=RoleResources(64), job_start_s=1)
    with pytest.raises(ResourceError, match=r"1 of 1 job workers could not be reached for 1 s"):
        results(config, [PauseJob(0)])


def test_job_that_hangs_is_an_error_not_a_wait(ray_session):
    config = RuntimeConfig(job_workers=1, job_resources=QUARTER, job_silence_s=1)
    with pytest.raises(ResourceError, match=r"No job made progress for 1 s during pausing"):
        results(config, [PauseJob(60)])

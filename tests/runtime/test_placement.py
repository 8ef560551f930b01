import pytest

from posegen_ray.config import (
    RenderServerConfig,
    RoleResources,
    RuntimeConfig,
    StreamConfig,
)
from posegen_ray.errors import ConfigError, ResourceError
from posegen_ray.runtime.failure_policy import Decision, Failure, decide
from posegen_ray.runtime.placement import Resources, plan, plan_trials, server_groups

HALF, WHOLE = RoleResources(0.5), RoleResources(1.0)


def config(server=HALF, per_server=1, workers=1, train=WHOLE):
    return RuntimeConfig(
        render=RenderServerConfig(resources=server, replicas=2, subjects_per_server=per_server),
        stream=StreamConfig(resources=RoleResources(0.25)),
        train_workers=workers,
        train_resources=train,
        job_workers=1,
        job_resources=HALF,
    )


def test_plan_adds_up():
    result = plan(config(), Resources(6, 0), num_subjects=4)
    assert result.cpus == 4 * 2 * 0.5 + 1 + 0.25 + 0.5
    assert "render server" in result.table()
    assert result.table().splitlines()[-1].split()[-2:] == ["6", "0"]


def test_subjects_share_servers():
    assert server_groups(["a", "b", "c"], 2) == [("a", "b"), ("c",)]
    assert plan(config(per_server=3), Resources(6, 0), num_subjects=4).shares[0].count == 4


def test_plan_that_needs_too_much_says_how_much():
    with pytest.raises(ResourceError, match=r"needs 5.75 logical CPUs, 2 are free.*\n") as error:
        plan(config(), Resources(2, 0), num_subjects=4)
    assert "runtime.num_cpus=6" in error.value.fix


def test_no_free_cpu_is_an_error_even_for_a_plan_that_needs_none():
    free = config(server=RoleResources(0), train=RoleResources(0))
    with pytest.raises(ResourceError, match="No logical CPU is free"):
        plan(free, Resources(0, 4), num_subjects=1, training=False)


@pytest.mark.parametrize(
    ("share", "gpus", "fits"),
    [(0.5, 1, True), (0.6, 2, True), (0.6, 1, False), (1.0, 1, False), (1.0, 2, True)],
)
def test_gpu_shares_do_not_straddle(share, gpus, fits):
    wanted = config(server=RoleResources(0, share))  # two servers
    if fits:
        plan(wanted, Resources(6, gpus), num_subjects=1)
    else:
        with pytest.raises(ResourceError, match="may not straddle two GPUs"):
            plan(wanted, Resources(6, gpus), num_subjects=1)


@pytest.mark.parametrize(
    ("cpus", "limit", "at_once"),
    [(3.0, 8, 1), (5.9, 8, 1), (6.0, 8, 2), (24.0, 3, 3)],  # a trial: 1 + 2 * 2 * 0.5
)
def test_as_many_trials_run_at_once_as_fit(cpus, limit, at_once):
    found = plan_trials(config(), Resources(cpus, 0), num_subjects=2, limit=limit)
    assert found.at_once == at_once
    assert sum(bundle["CPU"] for bundle in found.bundles()) == 3.0
    assert len(found.bundles()) == 5
    assert found.bundles()[0]["CPU"] == 1.0  # the trial's own process comes first
    assert f"{at_once} trial" in found.table().splitlines()[-1]


def test_sweep_of_which_no_trial_fits_says_how_much_one_needs():
    with pytest.raises(ResourceError, match=r"one trial.*needs 3 logical CPUs, 2.9 are free") as no:
        plan_trials(config(), Resources(2.9, 0), num_subjects=2, limit=8)
    assert "runtime.num_cpus=3" in no.value.fix


def test_trials_share_gpus_without_straddling_them():
    wanted = config(server=RoleResources(0, 0.2), train=RoleResources(1, 0.5))  # 0.9 a trial
    assert plan_trials(wanted, Resources(9, 2), num_subjects=1, limit=9).at_once == 2
    with pytest.raises(ResourceError, match="may not straddle"):
        plan_trials(wanted, Resources(9, 0), num_subjects=1, limit=9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RoleResources(-1), "num_cpus=-1 cannot be reserved"),
        (lambda: RoleResources(1.5), "num_cpus=1.5 cannot be reserved"),
        (lambda: RuntimeConfig(num_cpus=0), "num_cpus=0 is too small"),
        (lambda: RuntimeConfig(object_store_mb=1), "below Ray's minimum"),
        (lambda: RuntimeConfig(name="spark"), "'spark' is not a runtime"),
        (lambda: RenderServerConfig(max_batch=0), "max_batch=0 must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("failure", "attempt", "decision"),
    [
        (Failure.SERVER_LOST, 1, Decision.RETRY),
        (Failure.SERVER_DEAD, 1, Decision.REPLACE),
        (Failure.OUT_OF_MEMORY, 3, Decision.RETRY),
        (Failure.SERVER_DEAD, 4, Decision.RAISE),
        (Failure.BAD_REQUEST, 1, Decision.RAISE),
    ],
)
def test_failure_policy(failure, attempt, decision):
    assert decide(failure, attempt, max_attempts=4) is decision

import pytest

from posegen_ray.config import RenderServerConfig, RoleResources, RuntimeConfig
from posegen_ray.errors import ResourceError
from posegen_ray.runtime.placement import Node
from posegen_ray.runtime.trial_placement import plan_trials

HALF, WHOLE = RoleResources(0.5), RoleResources(1.0)


def config(server=HALF, train=WHOLE):
    return RuntimeConfig(
        render=RenderServerConfig(resources=server, replicas=2), train_resources=train
    )


@pytest.mark.parametrize(
    ("cpus", "limit", "at_once"),
    [(3.0, 8, 1), (5.9, 8, 1), (6.0, 8, 2), (24.0, 3, 3)],  # a trial: 1 + 2 * 2 * 0.5
)
def test_as_many_trials_run_at_once_as_fit(cpus, limit, at_once):
    found = plan_trials(config(), [Node("here", cpus)], num_subjects=2, limit=limit)
    assert found.at_once == at_once
    assert sum(bundle["CPU"] for bundle in found.bundles()) == 3.0
    assert len(found.bundles()) == 5
    assert found.bundles()[0]["CPU"] == 1.0  # the trial's own process comes first
    assert f"{at_once} trial" in found.table().splitlines()[-1]


def test_sweep_of_which_no_trial_fits_says_how_much_one_needs():
    message = r"one trial.*needs 3 logical CPUs and 0 GPUs, 2.9 and 0 are free"
    with pytest.raises(ResourceError, match=message) as no:
        plan_trials(config(), [Node("here", 2.9)], num_subjects=2, limit=8)
    assert "runtime.num_cpus=3" in no.value.fix


def test_trials_share_gpus_without_straddling_them():
    wanted = config(server=RoleResources(0, 0.2), train=RoleResources(1, 0.5))  # 0.9 a trial
    assert plan_trials(wanted, [Node("here", 9, 2)], num_subjects=1, limit=9).at_once == 2
    with pytest.raises(ResourceError, match="may not straddle"):
        plan_trials(wanted, [Node("here", 9)], num_subjects=1, limit=9)


def test_a_trial_may_not_straddle_machines_but_several_may_lie_on_several():
    two = [Node("one", 4), Node("other", 4)]
    assert plan_trials(config(), two, num_subjects=2, limit=8).at_once == 2

"""Plans that fit, and plans that do not: each is refused at once, with a remedy that works."""

import re
import time
from dataclasses import dataclass, replace

import pytest

from posegen_ray.compose import compose_config
from posegen_ray.config import (
    RenderServerConfig,
    RoleResources,
    RunConfig,
    RuntimeConfig,
    StreamConfig,
)
from posegen_ray.errors import ConfigError, ResourceError
from posegen_ray.runtime.failure_policy import Decision, Failure, decide, hangs
from posegen_ray.runtime.placement import (
    RENDER,
    STREAM,
    TRAIN,
    Node,
    Plan,
    demand,
    place,
    plan,
    private_node,
    server_groups,
)

HALF, WHOLE = RoleResources(0.5), RoleResources(1.0)


def config(server=HALF, per_server=1, workers=1, train=WHOLE, replicas=2, **rest):
    return RuntimeConfig(
        render=RenderServerConfig(
            resources=server, replicas=replicas, subjects_per_server=per_server
        ),
        stream=StreamConfig(resources=RoleResources(0.25)),
        train_workers=workers,
        train_resources=train,
        **{"job_workers": 1, "job_resources": HALF, **rest},
    )


def cluster(count, cpus, gpus=0.0):
    return [Node(f"10.0.0.{number + 1}", cpus, gpus, f"id{number}") for number in range(count)]


def assert_sound(result: Plan) -> None:
    """Packs the plan again, from what it says alone: no node is overfull, no GPU share is split."""
    for node in result.nodes:
        wanted = [
            share.resources for share in result.shares for home in share.nodes if home is node
        ]
        assert sum(each.num_cpus for each in wanted) <= node.cpus + 1e-9
        assert packable([each.num_gpus for each in wanted if each.num_gpus], node.gpu_slots())
    assert all(len(share.nodes) == share.count for share in result.shares)


def packable(shares, slots):
    """Whether some way of giving the shares to GPUs exists (exhaustive, unless all are equal)."""
    if not shares:
        return True
    if set(shares) == {share := min(shares)} and share < 1:
        return len(shares) <= sum(int(free / share + 1e-9) for free in slots)
    first, *rest = sorted(shares, reverse=True)
    if first >= 1:
        whole = [i for i, free in enumerate(slots) if free == 1]
        left = [free for i, free in enumerate(slots) if i not in whole[: int(first)]]
        return len(whole) >= first and packable(rest, left)
    return any(
        free + 1e-9 >= first and packable(rest, [*slots[:i], free - first, *slots[i + 1 :]])
        for i, free in enumerate(slots)
        if free not in slots[:i]
    )


def test_plan_adds_up_and_says_who_is_where():
    result = plan(config(), cluster(2, 4), num_subjects=4, private=False)
    assert result.cpus == 4 * 2 * 0.5 + 1 + 0.25 + 0.5
    assert_sound(result)
    rows = {line.split("  ")[0]: line.split() for line in result.table().splitlines()}
    assert "4 on 10.0.0.1, 4 on 10.0.0.2" in " ".join(rows["render server"])
    assert rows["free"][1:] == ["8", "0", "2", "nodes"]


def test_jobs_alone_need_no_servers():
    result = plan(config(), [Node("here", 1)], num_subjects=0, training=False)
    assert [share.role for share in result.shares] == ["job worker"]


def test_room_is_kept_for_servers_that_may_come():
    settings = config(replicas=1)
    settings = replace(settings, render=replace(settings.render, max_replicas=3))
    result = plan(settings, [Node("here", 8)], num_subjects=2)
    assert len(result.nodes_of(RENDER)) == 6


def test_subjects_share_servers():
    assert server_groups(["a", "b", "c"], 2) == [("a", "b"), ("c",)]
    shares = {share.role: share for share in demand(config(per_server=3), 4, True)}
    assert shares[RENDER].count == 4


def test_machines_with_gpus_are_spared_for_those_who_use_them():
    nodes = [*cluster(1, 8, 1), Node("plain", 8)]
    result = plan(config(server=RoleResources(0.5, 0.25)), nodes, 2, private=False)
    assert {node.name for node in result.nodes_of(RENDER)} == {"10.0.0.1"}
    assert {node.name for node in result.nodes_of(TRAIN)} == {"plain"}
    assert_sound(result)


def test_processes_are_packed_where_spreading_would_leave_too_little():
    small, big = config(server=RoleResources(1), replicas=2), RoleResources(4)
    result = plan(replace(small, train_resources=big), cluster(2, 4.5), 1, private=False)
    assert_sound(result)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_placed_is_always_sound(seed):
    import random

    draw = random.Random(seed)
    nodes = [Node(str(i), draw.choice([2, 4, 8]), draw.choice([0, 0.5, 1, 2, 4])) for i in range(4)]
    shares = [
        replace(
            share, resources=RoleResources(draw.choice([0.5, 1, 2]), draw.choice([0, 0.3, 0.6, 1]))
        )
        for share in demand(config(), 2, True)
    ]
    placed = place(shares, nodes)
    found = [replace(share, count=len(share.nodes)) for share in placed]
    assert_sound(Plan(tuple(found), tuple(nodes)))


def test_ten_thousand_servers_are_placed_within_a_second():
    start = time.perf_counter()
    result = plan(
        config(server=RoleResources(0.5, 0.025), replicas=1),
        cluster(256, 32, 1),
        10_000,
        True,
        False,
    )
    assert time.perf_counter() - start < 1
    assert len(result.nodes_of(RENDER)) == 10_000


@dataclass
class Refusal:
    """A plan that cannot fit."""

    config: RuntimeConfig
    nodes: list[Node] | None  # None: a private cluster
    reason: str
    subjects: int = 4


GPU_SERVER = RoleResources(0.25, 0.6)
REFUSALS = {
    "too few slots": Refusal(config(num_cpus=2), None, "needs 5.75 logical CPUs, 2 are free"),
    "room for servers that may come": Refusal(
        replace(config(num_cpus=6), render=RenderServerConfig(HALF, max_replicas=4)),
        None,
        "needs 9.75 logical CPUs, 6 are free",
    ),
    "a train worker larger than the machine": Refusal(
        config(num_cpus=6, train=RoleResources(8)), None, "needs 12.75 logical CPUs, 6 are free"
    ),
    "too few GPUs": Refusal(
        config(server=RoleResources(0.5, 1), num_cpus=9, num_gpus=4),
        None,
        "needs 8 GPUs, 4 are free",
    ),
    "no GPU at all": Refusal(
        config(server=RoleResources(0.5, 0.25), num_cpus=9), None, "needs 2 GPUs, 0 are free"
    ),
    "shares that straddle GPUs": Refusal(
        config(server=GPU_SERVER, num_cpus=9, num_gpus=5),
        None,
        "3 of 8 render servers .* may not straddle two GPUs",
    ),
    "too few slots and GPUs": Refusal(
        config(server=GPU_SERVER, num_cpus=1, num_gpus=1), None, "needs 3.75 logical CPUs, 1 are"
    ),
    "a whole GPU where only parts are free": Refusal(
        config(train=RoleResources(1, 1), replicas=1),
        cluster(2, 8, 0.5),
        "1 of 1 train workers .*1 GPUs each.* may not straddle",
    ),
    "a process larger than any node": Refusal(
        config(train=RoleResources(6)), cluster(3, 4), "1 of 1 train workers .*6 CPUs.*straddle"
    ),
    "two GPUs of one node for each of two workers": Refusal(
        config(workers=2, train=RoleResources(1, 2)), cluster(4, 8, 1), "2 of 2 train workers"
    ),
    "a cluster that others use": Refusal(
        config(), cluster(3, 0), "No logical CPU is free, and the plan needs 5.75"
    ),
    "a cluster too small": Refusal(config(), cluster(2, 1), "needs 5.75 logical CPUs, 2 are free"),
    "an empty cluster": Refusal(config(), [], "No logical CPU is free"),
    "GPUs without CPUs beside them": Refusal(
        config(server=RoleResources(1, 0.5)),
        [*cluster(4, 0.5, 1), Node("plain", 20)],
        "render servers .* find no place",
    ),
    "too many subjects for many machines": Refusal(
        config(server=RoleResources(1, 0.3)),
        cluster(256, 32, 1),
        "needs 20001.8 logical CPUs",
        10_000,
    ),
    "too many subjects": Refusal(
        config(replicas=1), cluster(4, 16), "needs 5001.75 logical CPUs, 64 are free", 10_000
    ),
}


def refused(case, settings, nodes):
    there = [private_node(settings)] if case.nodes is None else nodes
    return plan(settings, there, case.subjects, private=case.nodes is None)


@pytest.mark.parametrize("case", REFUSALS.values(), ids=REFUSALS.keys())
def test_plan_that_cannot_fit_is_refused_at_once_with_a_remedy_that_works(case):
    start = time.perf_counter()
    with pytest.raises(ResourceError, match=f"(?s){case.reason}") as error:
        refused(case, case.config, case.nodes)
    assert time.perf_counter() - start < 5
    assert "no place for" in error.value.what or "No logical CPU" in error.value.what
    print(f"\n{error.value}")

    remedies = 0
    settings = re.findall(r"runtime\.([\w.]+)=([\d.]*\d)", error.value.fix)
    if settings:
        changed = case.config
        for path, value in settings:
            changed = apply(changed, path, value)
        assert_sound(refused(case, changed, case.nodes))
        remedies += 1
    machine = re.search(r"node with (\d+) CPUs and (\d+) GPUs", error.value.fix)
    if machine:
        more = Node("new", int(machine[1]), int(machine[2]))
        assert_sound(refused(case, case.config, [*case.nodes, more]))
        remedies += 1
    assert remedies == (1 if case.nodes is None else 2) or not case.nodes or case.nodes[0].cpus == 0


def apply(settings, path, value):
    """Sets a setting the way the command line does."""
    first, _, rest = path.partition(".")
    old = getattr(settings, first)
    new = apply(old, rest, value) if rest else type(old)(value)
    return replace(settings, **{first: new})


@pytest.mark.parametrize(
    ("share", "gpus", "fits"),
    [(0.5, 1, True), (0.6, 2, True), (0.6, 1, False), (1.0, 1, False), (1.0, 2, True)],
)
def test_gpu_shares_do_not_straddle(share, gpus, fits):
    wanted = config(server=RoleResources(0, share))  # two servers
    if fits:
        assert_sound(plan(wanted, [Node("here", 6, gpus)], num_subjects=1))
    else:
        with pytest.raises(ResourceError, match="no place for"):
            plan(wanted, [Node("here", 6, gpus)], num_subjects=1)


PRESETS = {  # the machines that each is meant for
    "laptop": None,
    "one_gpu": None,
    "multi_gpu": None,
    "cluster": [Node("head", 4), *cluster(2, 16, 1)],
}


@pytest.mark.parametrize("name", PRESETS)
def test_preset_fits_the_machines_that_it_is_meant_for(name):
    run: RunConfig = compose_config([f"runtime={name}"])
    nodes, runtime = PRESETS[name], run.runtime
    result = plan(runtime, nodes or [private_node(runtime)], 6, private=nodes is None)
    assert_sound(result)
    assert len(result.nodes_of(STREAM)) == runtime.train_workers * runtime.stream.actors
    print(f"\n{result.table()}")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RoleResources(-1), "num_cpus=-1 cannot be reserved"),
        (lambda: RoleResources(1.5), "num_cpus=1.5 cannot be reserved"),
        (lambda: RuntimeConfig(num_cpus=0), "num_cpus=0 is too small"),
        (lambda: RuntimeConfig(object_store_mb=1), "below Ray's minimum"),
        (lambda: RuntimeConfig(name="spark"), "'spark' is not a runtime"),
        (lambda: RuntimeConfig(scale_up_s=-1), "scale_up_s=-1 is too small"),
        (lambda: RenderServerConfig(max_batch=0), "max_batch=0 must be at least 1"),
        (lambda: RenderServerConfig(kept_calls=0), "kept_calls=0 must be at least 1"),
        (lambda: RenderServerConfig(idle_s=0), "idle_s=0 must be positive"),
        (lambda: RenderServerConfig(loaded_subjects=-1), "loaded_subjects=-1 must not be"),
        (lambda: RenderServerConfig(replicas=3, max_replicas=2), "max_replicas=2 is less than"),
        (lambda: RenderServerConfig(max_replicas=2, max_in_flight=1), "lets no call wait"),
        (lambda: RenderServerConfig(deadline_s=60), "call_deadline_s=120 is not below"),
        (lambda: StreamConfig(deadline_s=0), "stream.deadline_s=0 must be positive"),
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
        (Failure.SERVER_HANGS, 1, Decision.REPLACE),
        (Failure.NOT_FINITE, 3, Decision.REPLACE),
        (Failure.NOT_FINITE, 4, Decision.ACCEPT),
        (Failure.OUT_OF_MEMORY, 3, Decision.RETRY),
        (Failure.SERVER_DEAD, 4, Decision.RAISE),
        (Failure.BAD_REQUEST, 1, Decision.RAISE),
    ],
)
def test_failure_policy(failure, attempt, decision):
    assert decide(failure, attempt, max_attempts=4) is decision


def test_nan_of_a_second_server_is_handed_on():
    assert decide(Failure.NOT_FINITE, 2, 4, again=True) is Decision.ACCEPT
    assert decide(Failure.SERVER_DEAD, 2, 4, again=True) is Decision.REPLACE


@pytest.mark.parametrize(
    ("working_s", "loading_s", "hanging"),
    [(0, 0, False), (9, 0, False), (11, 0, True), (0, 11, False), (0, 101, True)],
)
def test_a_server_hangs_that_is_at_it_for_too_long(working_s, loading_s, hanging):
    assert hangs(working_s, loading_s, call_deadline_s=10, start_timeout_s=100) is hanging

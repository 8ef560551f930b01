import contextlib
import pickle
import threading
import time
from dataclasses import replace
from urllib.request import urlopen

import pytest
import ray
import torch
from runtime_fakes import (
    BrokenFactory,
    SineFactory,
    SineRenderer,
    UnevenFactory,
    assert_same,
    gradients,
    random_request,
    wait_until_working,
    with_gradients,
)

from posegen_ray.config import RenderServerConfig, RoleResources
from posegen_ray.errors import RenderError, ResourceError, SubjectError
from posegen_ray.runtime.render_pool import RenderPool, start_servers
from posegen_ray.runtime.replicas import ServerSpec

CONFIG = RenderServerConfig(
    resources=RoleResources(0.25),
    max_batch=3,
    start_timeout_s=60,
    deadline_s=60,
    call_deadline_s=30,
)
MIXED = ("ada", "ben", "ada", "ada", "ben", "ada", "ada", "cy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="module")
def pool(ray_session, folder):
    groups = (("ada",), ("ben", "cy"))
    pool = start_servers([ServerSpec(g, SineFactory(folder), CONFIG) for g in groups], "fast")
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def slow_pool(ray_session, folder):
    """Each call takes half a second."""
    pool = start_servers([ServerSpec(("ada",), SineFactory(folder, 0.5), CONFIG)], "slow")
    yield pool
    pool.close()


def test_served_pictures_and_gradients_are_the_local_ones_in_request_order(pool, folder):
    request = random_request(MIXED)
    assert_same(gradients(pool.render, request), gradients(SineRenderer(folder), request))


def test_gradients_agree_with_finite_differences(pool):
    request, leaves = with_gradients(random_request(("ada", "cy"), size=4))
    pool.render(request).rgba.double().mean().backward()
    for leaf in leaves:
        direction = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(0))
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                leaf += sign * 1e-2 * direction
                values.append(pool.render(request).rgba.double().mean())
                leaf -= sign * 1e-2 * direction
        slope = (values[0] - values[1]) / 2e-2
        torch.testing.assert_close(
            (leaf.grad * direction).sum().double(), slope, rtol=2e-3, atol=1e-5
        )


def test_only_wanted_gradients_are_given(pool):
    request, leaves = with_gradients(random_request(("ada",)))
    leaves[0].requires_grad_(False)
    pool.render(request).rgba.sum().backward()
    assert leaves[0].grad is None
    assert leaves[1].grad is not None


def test_pool_works_from_another_process(pool, folder):
    @ray.remote(num_cpus=0.1)
    def render_elsewhere(pool: RenderPool, request):
        return pool.render(request).rgba

    request = random_request(MIXED)
    served = ray.get(render_elsewhere.remote(pool, request))
    torch.testing.assert_close(served, SineRenderer(folder)(request).rgba, rtol=0, atol=0)


def test_unknown_subject_is_named(pool):
    with pytest.raises(RenderError, match=r"holds subject.* dora.*The pool has ada, ben, cy"):
        pool.render(random_request(("ada", "dora")))


def test_a_request_for_nothing_is_refused_as_without_servers(pool):
    with pytest.raises(RenderError, match="empty"):
        pool.render(random_request(("ada",))[[]])


def test_two_replicas_give_the_same_answer_and_share_the_work(ray_session, folder):
    config = RenderServerConfig(resources=RoleResources(0.25), replicas=2, max_batch=1)
    pool = start_servers([ServerSpec(("ada",), SineFactory(folder, 0.02), config)], "two")
    try:
        request = random_request(("ada",) * 6)
        expected = SineRenderer(folder)(request).rgba
        torch.testing.assert_close(pool.render(request).rgba, expected, rtol=0, atol=0)
        assert all(server.renders >= 2 for server in pool.health())
    finally:
        pool.close()


def test_a_gradient_goes_to_the_server_that_has_kept_its_picture(ray_session, tmp_path):
    """Also where another server would be free earlier: nothing is rendered twice."""
    config = RenderServerConfig(resources=RoleResources(0.25), replicas=2, max_batch=1)
    pool = start_servers([ServerSpec(("ada",), UnevenFactory(tmp_path, 0.1), config)], "uneven")
    try:
        request = random_request(("ada",) * 7)
        found = gradients(pool.render, request)
        done = [(server.renders, server.gradients) for server in pool.health()]
        worked = len(list(tmp_path.glob("working_*")))
        assert_same(found, gradients(SineRenderer(tmp_path), request))
        assert sorted(renders for renders, _ in done) != [3, 4]  # one was faster
        assert all(renders == gradients for renders, gradients in done)
        assert worked == 7 + 7
    finally:
        pool.close()


def test_more_subjects_than_fit_are_loaded_on_demand_where_they_are_wanted(ray_session, folder):
    config = replace(CONFIG, replicas=2, loaded_subjects=1)
    pool = start_servers([ServerSpec(("ada", "ben", "cy"), SineFactory(folder), config)], "many")
    try:
        request = random_request(MIXED)
        assert_same(gradients(pool.render, request), gradients(SineRenderer(folder), request))
        for name in ("ada", "ben"):
            pool.render(random_request((name,)))
        pool.metrics()
        for name in ("ada", "ben") * 3:  # each from the server that has it
            pool.render(random_request((name,)))
        assert pool.metrics()["subject_loads"] == 0
        healths = pool.health()
        assert [health.loaded for health in healths] == [("ada",), ("ben",)]
        assert all(health.loads - health.evictions == 1 for health in healths)
        assert all(health.load_s > 0 for health in healths)
    finally:
        pool.close()


def test_servers_keep_a_picture_only_where_its_gradient_follows(pool, monkeypatch):
    kept = []
    draw = pool.draw

    def noting(request, keep):
        kept.append(keep)
        return draw(request, keep)

    monkeypatch.setattr(pool, "draw", noting)
    request = random_request(MIXED)
    moved = replace(request, bones=request.bones.requires_grad_())
    with torch.no_grad():
        pool.render(moved)
    pool.render(replace(moved, bones=moved.bones.detach()))
    pool.render(moved)
    assert kept == [False, False, True]


def test_metrics_say_what_happened_since_the_last_time(pool):
    pool.metrics()
    pool.render(random_request(MIXED))
    found = pool.metrics()
    assert found["images_per_s"] > 0
    assert 0 < found["latency_p50_ms"] <= found["latency_p99_ms"] < 10_000
    assert found["calls_in_work"] > 0
    assert (found["servers"], found["servers_restarted"], found["servers_replaced"]) == (2, 0, 0)
    assert found["server_memory_mb"] > 10
    assert pool.metrics()["images_per_s"] == 0


@pytest.mark.slow
def test_ray_exports_what_servers_tell(pool):
    """Ray reports every ten seconds, in Prometheus's format."""
    port = ray.nodes()[0]["MetricsExportPort"]
    wanted = {
        "ray_posegen_render_waiting",
        "ray_posegen_render_seconds_bucket",
        "ray_posegen_render_pictures_total",
        "ray_posegen_render_subject_loads_total",
    }
    end = time.monotonic() + 60
    text = ""
    while not all(f"{name}{{" in text and 'server="fast-' in text for name in wanted):
        assert time.monotonic() < end, text[-3000:]
        pool.render(random_request(MIXED))
        time.sleep(1)
        text = urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()


def wait_until_dead(server):
    """A killed actor may answer a little longer."""
    with contextlib.suppress(ray.exceptions.RayActorError):
        while True:
            ray.get(server.load.remote())


def test_server_dead_for_good_is_replaced(ray_session, folder):
    pool = start_servers([ServerSpec(("ada",), SineFactory(folder), CONFIG)], "mortal")
    try:
        request = random_request(("ada",))
        stale = pickle.loads(ray.cloudpickle.dumps(pool))  # another client
        first = pool.health()[0].load.process_id
        server = pool._teams[0].permanent[0]
        ray.kill(server, no_restart=True)
        wait_until_dead(server)
        expected = SineRenderer(folder)(request).rgba
        torch.testing.assert_close(pool.render(request).rgba, expected, rtol=0, atol=0)
        torch.testing.assert_close(stale.render(request).rgba, expected, rtol=0, atol=0)
        assert pool.health()[0].load.process_id == stale.health()[0].load.process_id != first
    finally:
        pool.close()


def test_health_answers_at_once_during_a_render(slow_pool, folder):
    before = len(list(folder.glob("working_*")))
    worker = threading.Thread(target=slow_pool.render, args=(random_request(("ada",)),))
    worker.start()
    wait_until_working(folder, before + 1)
    started = time.monotonic()
    health = slow_pool.health()[0]
    took = time.monotonic() - started
    worker.join()
    assert health.load.working_s > 0
    assert took < 0.25
    assert health.memory_mb > 10


def test_silence_ends_in_an_explanation(slow_pool, monkeypatch):
    monkeypatch.setattr(slow_pool._config, "deadline_s", 0.2)
    with pytest.raises(RenderError, match=r"of ada answered within 0.2 s .*deadline_s"):
        slow_pool.render(random_request(("ada",)))


def test_broken_subject_says_why(ray_session):
    with pytest.raises(SubjectError, match="ghost"):
        start_servers([ServerSpec(("ghost",), BrokenFactory(), CONFIG)], "broken")


def test_server_without_a_place_says_so(ray_session, folder):
    config = RenderServerConfig(resources=RoleResources(64), start_timeout_s=0.5)
    with pytest.raises(ResourceError, match=r"did not answer.*logical CPUs"):
        start_servers([ServerSpec(("ada",), SineFactory(folder), config)], "huge")

"""The number of servers follows the load; clients everywhere use what there is."""

import threading
import time

import pytest
import ray
import torch
from processes import alive
from runtime_fakes import SineFactory, SineRenderer, random_request

from posegen_ray.config import RenderServerConfig, RoleResources
from posegen_ray.runtime import render_scaling
from posegen_ray.runtime.render_pool import start_servers
from posegen_ray.runtime.replicas import ServerSpec

REQUEST = random_request(("ada",) * 4)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(render_scaling, "_LOOK_S", 0.25)
    monkeypatch.setattr(render_scaling, "FOLLOW_S", 0.5)


def config(cpus, **rest):
    server = RoleResources(cpus)
    return RenderServerConfig(resources=server, max_replicas=2, max_batch=1, idle_s=1, **rest)


def until(what, timeout_s=120.0):  # a loaded machine takes its time
    end = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)


@ray.remote(num_cpus=0.1)
class Client:
    """Another process that renders until it is told to stop, and says how often it was wrong."""

    def __init__(self):
        self._stop = False

    def render(self, pool, right):
        wrong = 0
        while not self._stop:
            wrong += not torch.equal(pool.render(REQUEST).rgba, right)
        return wrong

    def stop(self):
        self._stop = True


def test_servers_come_while_calls_queue_and_go_when_they_are_idle(ray_session, tmp_path):
    said = []
    spec = ServerSpec(("ada",), SineFactory(tmp_path, 0.05), config(0.25))
    pool = start_servers([spec], "elastic", said.append)
    client = Client.options(max_concurrency=2).remote()
    try:
        work = client.render.remote(pool, SineRenderer(tmp_path)(REQUEST).rgba)
        until(lambda: len(pool.health()) == 2)
        until(lambda: pool.health()[1].renders > 0)  # of a client that was there before it
        second = pool.health()[1].load.process_id
        client.stop.remote()
        assert ray.get(work, timeout=120) == 0
        until(lambda: len(pool.health()) == 1)
        until(lambda: not alive(second))
        assert [line.split()[0] for line in said] == ["2", "1"]
        assert "calls queue" in said[0]
    finally:
        ray.kill(client)
        pool.close()


def test_no_room_for_another_server_is_only_a_note(ray_session, tmp_path, monkeypatch):
    said, settings = [], config(4)
    pool = start_servers(
        [ServerSpec(("ada",), SineFactory(tmp_path, 0.05), settings)], "crowded", said.append
    )
    monkeypatch.setattr(settings, "start_timeout_s", 1.0)
    try:
        right, over = SineRenderer(tmp_path)(REQUEST).rgba, threading.Event()

        def work():
            while not over.is_set():
                assert torch.equal(pool.render(REQUEST).rgba, right)

        worker = threading.Thread(target=work)
        worker.start()
        until(lambda: said)
        over.set()
        worker.join()
        assert "No room for another render server of ada" in said[0]
        assert len(pool.health()) == 1
        until(lambda: ray.available_resources().get("CPU", 0) > 1)  # it waits for nothing any more
    finally:
        pool.close()

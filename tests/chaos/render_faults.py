"""What the render rows of the fault matrix share: a reference, a watcher, and the clock."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import ray
from runtime_fakes import assert_same, gradients

from posegen_ray.records import RenderFn, RenderRequest
from posegen_ray.runtime.render_pool import RenderPool
from posegen_ray.runtime.render_server import ServerLoad

PATIENCE_S = 60.0
Until = Callable[[], bool]


def servers_of(pool: RenderPool) -> list:
    return [server for team in pool._teams for server in team.servers.values()]


def loads(pool: RenderPool) -> list[ServerLoad]:
    return ray.get([server.load.remote() for server in servers_of(pool)], timeout=PATIENCE_S)


def node_of(server) -> str:
    """The node that a server runs on."""
    call = server.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id())
    return str(ray.get(call, timeout=PATIENCE_S))


def kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)


def wait_for(what: Until) -> None:
    end = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.005)


class Fault(threading.Thread):
    """Waits for a moment, then breaks something; fails the test if the moment does not come."""

    def __init__(self, moment: Until, act: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._moment, self._act = moment, act
        self.at: float | None = None
        self.start()

    def run(self) -> None:
        wait_for(self._moment)
        self._act()
        self.at = time.monotonic()


def gradients_with(
    pool: RenderPool, request: RenderRequest, *, at_vjp: Callable[[], object] | None = None
):
    """The pool's `gradients`; breaks something when the pictures are there."""

    def render(request: RenderRequest):
        result = pool.render(request)
        if at_vjp is not None:
            at_vjp()
        return result

    return gradients(render, request)


def check(found, render: RenderFn, request: RenderRequest) -> None:
    """Equal to the undisturbed run in one process, bit by bit."""
    assert_same(found, gradients(render, request))

"""Many small nodes on this machine: placement, routing, a lost node; sleep instead of render.

    python benchmarks/simulation.py [nodes] [subjects]      8 nodes, 12 subjects; about two minutes

Starts a cluster of that many Ray nodes (two logical CPUs each, loopback only), plans a render
server for each subject, starts the servers where the plan wants them, and sends mixed requests. A
"picture" is a function of the request's numbers and takes 50 ms. Then the node with most servers is
lost in the middle of a request. Fails if a server is elsewhere than planned or an answer wrong.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # before Ray is imported: loopback only
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import numpy as np
import ray
from ray.cluster_utils import Cluster
from scaling import busiest_server

from posegen_ray.config import RenderServerConfig, RoleResources, RuntimeConfig
from posegen_ray.runtime.capacity import find_places
from posegen_ray.runtime.placement import RENDER
from posegen_ray.runtime.render_pool import RenderPool, start_servers
from posegen_ray.runtime.replicas import ServerSpec
from posegen_ray.runtime.session import RaySession
from posegen_ray.runtime.wire import RequestArrays

PICTURE_S = 0.05
BATCH, REQUESTS = 32, 12
NODE = {"num_cpus": 2, "object_store_memory": 80 * 2**20, "node_ip_address": "127.0.0.1"}


class SleepRenderer:
    """Takes its time; the picture is made of the request's own numbers."""

    def render_arrays(self, request: RequestArrays, keep: bool = False) -> Any:
        time.sleep(PICTURE_S * len(request))
        return picture(request)


def picture(request: RequestArrays) -> Any:
    """What the right answer is: [B, H, W, 4]."""
    named = [sum(map(ord, name)) for name in request.subjects]
    values = request.bones.reshape(len(request), -1)[:, :4] + np.array(named)[:, None]
    shape = (len(request), request.height, request.width, 4)
    return np.broadcast_to(values[:, None, None], shape).astype(np.float32)


@dataclass(frozen=True)
class SleepFactory:
    def __call__(self, subject: str) -> Any:
        return SleepRenderer()


def main(arguments: Sequence[str]) -> None:
    given = dict(enumerate(map(int, arguments)))
    nodes, subjects = given.get(0, 8), given.get(1, 12)
    server = RenderServerConfig(resources=RoleResources(0.5), max_batch=4, start_timeout_s=300)
    config = RuntimeConfig(job_workers=1, job_resources=RoleResources(0.5), render=server)
    start = time.perf_counter()
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    try:
        handles = [cluster.add_node(wait=False, **NODE) for _ in range(nodes - 1)]
        cluster.wait_for_nodes(timeout=120)
        print(f"{nodes} nodes after {time.perf_counter() - start:.0f} s")
        with RaySession(replace(config, address=cluster.address)) as session:
            simulate(config, session.private, subjects, cluster, handles)
    finally:
        cluster.shutdown()


def simulate(
    config: RuntimeConfig, private: bool, subjects: int, cluster: Cluster, handles: list[Any]
) -> None:
    """Places, routes, loses a node."""
    start = time.perf_counter()
    plan = find_places(config, subjects, training=False, private=private)
    print(f"planned in {1000 * (time.perf_counter() - start):.0f} ms\n{plan.table()}")
    names = [f"person{number}" for number in range(subjects)]
    homes = plan.nodes_of(RENDER)
    specs = [
        ServerSpec((name,), SleepFactory(), config.render, (home,))
        for name, home in zip(names, homes, strict=True)
    ]
    pool = start_servers(specs, "sleep")
    servers = servers_of(pool)
    at = [where(server) for server in servers]
    assert at == [home.id for home in homes], "a server is elsewhere than planned"

    took = [ask(pool, names, seed) for seed in range(REQUESTS)]
    ideal = busiest_server(BATCH, subjects, subjects) * PICTURE_S
    print(
        f"{BATCH} pictures of {subjects} people: {1000 * np.median(took):.0f} ms (median); the "
        f"busiest server's pictures alone take {1000 * ideal:.0f} ms as a rule"
    )
    mine = {handle.node_id: handle for handle in handles}
    lost = max(mine, key=lambda node: at.count(node))
    loser = threading.Timer(2 * PICTURE_S, cluster.remove_node, (mine[lost],))
    loser.start()
    paused = ask(pool, names, REQUESTS)
    loser.join()
    print(f"a node with {at.count(lost)} servers lost meanwhile: {paused:.1f} s")
    again = ask(pool, names, REQUESTS + 1)
    assert lost not in [where(server) for server in servers_of(pool)]
    print(f"afterwards, on {len(handles)} nodes: {1000 * again:.0f} ms; all answers were right")


def ask(pool: RenderPool, names: Sequence[str], seed: int) -> float:
    """Sends a mixed request and checks every picture; seconds."""
    draw = np.random.default_rng(seed)

    def numbers(*shape: int) -> Any:
        return draw.standard_normal((BATCH, *shape)).astype(np.float32)

    request = RequestArrays(
        tuple(draw.choice(names, BATCH)),
        *(numbers(24, 3, 4), numbers(3, 3), numbers(3), numbers(), numbers(2), numbers(3)),
        height=8,
        width=8,
    )
    start = time.perf_counter()
    answer = pool.render_arrays(request)
    took = time.perf_counter() - start
    np.testing.assert_array_equal(answer, picture(request))
    return took


def servers_of(pool: RenderPool) -> list[Any]:
    return [server for team in pool._teams for server in team.servers.values()]


def where(server: Any) -> str:
    """The node that a server runs on."""
    call = server.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id())
    return str(ray.get(call, timeout=60))


if __name__ == "__main__":
    main(sys.argv[1:])

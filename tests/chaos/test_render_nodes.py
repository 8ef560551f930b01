"""The fault matrix, render servers: a whole machine is lost in the middle of a request."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from bodies import capsule_body, painted_subject
from ray.cluster_utils import Cluster
from render_faults import Fault, check, gradients_with, loads, node_of, servers_of
from runtime_fakes import posed_request

from posegen_ray.config import RendererConfig, RenderServerConfig, RoleResources, RuntimeConfig
from posegen_ray.runtime.capacity import free_nodes
from posegen_ray.runtime.render_pool import start_pool
from posegen_ray.runtime.session import RaySession
from posegen_ray.subjects.render import make_renderer
from posegen_ray.subjects.store import save_subject

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "node_ip_address": "127.0.0.1"}
CONFIG = RenderServerConfig(resources=RoleResources(0.5), max_batch=2, start_timeout_s=120)
PEOPLE = {"one": 0.0, "two": 1.0}


@pytest.mark.parametrize("nodes", [2, 3])
def test_a_machine_lost_in_mid_request(tmp_path, monkeypatch, note_recovery, nodes):
    subjects = {name: painted_subject(name, hue) for name, hue in PEOPLE.items()}
    for name, subject in subjects.items():
        save_subject(subject, tmp_path / name)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    try:
        others = {
            node.node_id: node for node in (cluster.add_node(**NODE) for _ in range(nodes - 1))
        }
        cluster.wait_for_nodes(timeout=120)
        with RaySession(replace(RuntimeConfig(), address=cluster.address)):
            there = [node for node in free_nodes() if node.id in others]
            folders = {name: tmp_path / name for name in subjects}
            homes = [there[number % len(there)] for number in range(len(folders))]
            pool = start_pool(CONFIG, folders, RendererConfig(), "people", nodes=homes)
            assert [node_of(server) for server in servers_of(pool)] == [home.id for home in homes]
            lost = homes[0].id
            request = posed_request(capsule_body(), tuple(PEOPLE) * 8)
            fault = Fault(
                lambda: loads(pool)[0].working_s > 0,
                lambda: cluster.remove_node(others[lost], allow_graceful=False),
            )
            found = gradients_with(pool, request)
            assert fault.at is not None
            note_recovery(f"one of {nodes} machines lost", time.monotonic() - fault.at)
            assert lost not in [node_of(server) for server in servers_of(pool)]
            check(found, make_renderer(RendererConfig(), subjects), request)
    finally:
        cluster.shutdown()

"""What the cluster's machines have free, and how more of them are asked for."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import ray
from ray.autoscaler.sdk import request_resources

from posegen_ray.config import RuntimeConfig
from posegen_ray.errors import ResourceError
from posegen_ray.runtime.placement import Node, Plan, bundles, demand, plan

_POLL_S = 1.0
_SETTLING_S = 3.0  # in which a cluster notices that an earlier run gave its resources back


def free_nodes() -> list[Node]:
    """Every living machine of the cluster with what is free on it, those with most first."""
    # Ray's public functions tell what is free in all (ray.available_resources), or what a machine
    # has in total (ray.nodes, ray.util.state.list_nodes); this one Ray marks as its DeveloperAPI
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    alive = [node for node in ray.nodes() if node["Alive"]]
    times = Counter(node["NodeManagerAddress"] for node in alive)
    nodes = []
    for node in alive:
        name, id = node["NodeManagerAddress"], node["NodeID"]
        if times[name] > 1:  # several on one machine, in tests
            name = f"{name}/{id[:4]}"
        there = free.get(id, {})
        nodes.append(Node(name, there.get("CPU", 0.0), there.get("GPU", 0.0), id))
    return sorted(nodes, key=lambda node: (-node.gpus, -node.cpus, node.id))


def find_places(
    config: RuntimeConfig,
    num_subjects: int,
    training: bool,
    private: bool,
    say: Callable[[str], None] = print,
) -> Plan:
    """The plan on the machines that are there; an autoscaler is given time to start more.

    Args:
        config: the runtime section; `scale_up_s` is how long to wait for machines.
        num_subjects, training, private: see `plan`.
        say: told when the wait begins.

    Raises:
        ResourceError: the plan does not fit, or did not within `scale_up_s`.
    """

    wait_s = 0.0 if private else max(config.scale_up_s, _SETTLING_S)
    end = time.monotonic() + wait_s
    asked = False
    try:
        while True:
            try:
                return plan(config, free_nodes(), num_subjects, training, private)
            except ResourceError as error:
                if time.monotonic() >= end:
                    late = f"No machine came within {wait_s:g} s. " if asked else ""
                    raise ResourceError(f"{late}{error.what}", error.fix) from error
                if config.scale_up_s > 0 and not asked:
                    say(f"waiting up to {wait_s:g} s for more machines:\n{error.what.strip()}")
                    request_resources(bundles=bundles(demand(config, num_subjects, training)))
                    asked = True
            time.sleep(_POLL_S)
    finally:
        if asked:  # the processes themselves keep the machines from now on
            request_resources(bundles=[])

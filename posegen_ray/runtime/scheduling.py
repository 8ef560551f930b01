"""How an actor is told where the plan wants it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from posegen_ray.runtime.placement import Node


def on_node(nodes: Sequence[Node], number: int) -> dict[str, Any]:
    """Actor options for process `number` of a role; none where the plan names no machine.

    Soft: when the machine is lost, the process starts again on another one.
    """
    if number >= len(nodes) or not nodes[number].id:
        return {}
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(nodes[number].id, soft=True)}

"""What each trial of a sweep gets, and how many run at once. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from posegen_ray.config import RuntimeConfig
from posegen_ray.errors import ResourceError
from posegen_ray.runtime.placement import Node, Plan, Share, bundles, place


@dataclass(frozen=True)
class TrialPlan:
    """What each trial of a sweep gets as one placement group, and how many run at once."""

    trial: Plan  # of the first one; its first share is its own process, which trains
    at_once: int

    def bundles(self) -> list[dict[str, float]]:
        """The placement group's bundles, the training process's first."""
        return bundles(self.trial.shares)

    def table(self) -> str:
        """One trial's shares as a small text table, and how many trials run at once."""
        trials = "1 trial runs" if self.at_once == 1 else f"{self.at_once} trials run"
        return f"each trial:\n{self.trial.table()}\n{trials} at once"


def plan_trials(
    config: RuntimeConfig, nodes: Sequence[Node], num_subjects: int, limit: int
) -> TrialPlan:
    """How many trials of a sweep run at once, each with its own servers; at least one must fit.

    Args:
        config: the runtime section.
        nodes: what each machine has free for trials.
        num_subjects: how many subjects each trial renders.
        limit: never more trials than this.

    Raises:
        ResourceError: not even one trial fits; the message holds the table.
    """
    groups = math.ceil(num_subjects / config.render.subjects_per_server)
    shares = (
        Share("trial: training", 1, config.train_resources),
        Share("trial: server", groups * config.render.replicas, config.render.resources),
    )
    alone = _trials(shares, 1, nodes)
    if not alone.fits:
        free = f"{sum(n.cpus for n in nodes):g} and {sum(n.gpus for n in nodes):g} are free"
        raise ResourceError(
            f"Not even one trial fits: it needs {alone.cpus:g} logical CPUs and {alone.gpus:g} "
            f"GPUs, {free}, and a share may not straddle two machines or GPUs:\n{alone.table()}\n",
            f"Set runtime.num_cpus={max(math.ceil(alone.cpus), 1)} (logical slots, more than cores "
            "is allowed), or lower the shares of runtime.train_resources and "
            "runtime.render.resources, or raise runtime.render.subjects_per_server.",
        )
    at_once = 1
    while at_once < limit and _trials(shares, at_once + 1, nodes).fits:
        at_once += 1
    return TrialPlan(alone, at_once)


def _trials(shares: Sequence[Share], count: int, nodes: Sequence[Node]) -> Plan:
    every = [replace(share, count=count * share.count) for share in shares]
    return Plan(place(every, nodes), tuple(nodes))

"""Who gets which share of the machine. Pure arithmetic: knows nothing about Ray's API.

Checked before anything starts: Ray would wait without a word for resources that never come.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from posegen_ray.config import RoleResources, RuntimeConfig
from posegen_ray.errors import ResourceError

_TOLERANCE = 1e-6  # Ray counts resources in steps of 1e-4


@dataclass(frozen=True)
class Resources:
    """Logical CPU slots and GPUs that are free for us."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class Share:
    """`count` processes of one role, each with the same reservation."""

    role: str
    count: int
    resources: RoleResources

    @property
    def cpus(self) -> float:
        return self.count * self.resources.num_cpus

    @property
    def gpus(self) -> float:
        return self.count * self.resources.num_gpus


@dataclass(frozen=True)
class Plan:
    """A division of the resources that fits."""

    shares: tuple[Share, ...]
    available: Resources

    @property
    def cpus(self) -> float:
        return sum(share.cpus for share in self.shares)

    @property
    def gpus(self) -> float:
        return sum(share.gpus for share in self.shares)

    def table(self) -> str:
        """The plan as a small text table."""
        return _table(self.shares, self.available)


def server_groups(subjects: list[str], subjects_per_server: int) -> list[tuple[str, ...]]:
    """Which subjects live together in one render server, in the given order."""
    starts = range(0, len(subjects), subjects_per_server)
    return [tuple(subjects[start : start + subjects_per_server]) for start in starts]


def plan(
    config: RuntimeConfig,
    available: Resources,
    num_subjects: int,
    training: bool = True,
) -> Plan:
    """Divides the resources among the roles, or says with numbers why they do not suffice.

    Args:
        config: the runtime section.
        available: what the cluster has free.
        num_subjects: how many subjects must be served at the same time.
        training: whether train workers and their sample streams run too.

    Raises:
        ResourceError: too few logical CPUs or GPUs; the message holds the table.
    """
    groups = math.ceil(num_subjects / config.render.subjects_per_server)
    shares = [Share("render server", groups * config.render.replicas, config.render.resources)]
    shares.append(Share("job worker", config.job_workers, config.job_resources))
    if training:
        shares.append(Share("train worker", config.train_workers, config.train_resources))
        streams = config.train_workers * config.stream.actors
        shares.append(Share("sample stream", streams, config.stream.resources))
    result = Plan(tuple(shares), available)
    if available.cpus < _TOLERANCE:
        raise ResourceError(
            "No logical CPU is free, so nothing could start.",
            "Free the cluster's CPUs, or start a private one with runtime.num_cpus=6.",
        )
    if result.cpus > available.cpus + _TOLERANCE:
        raise ResourceError(
            f"The plan needs {result.cpus:g} logical CPUs, {available.cpus:g} are free:\n"
            f"{result.table()}\n",
            f"Set runtime.num_cpus={math.ceil(result.cpus)} (logical slots, more than cores is "
            "allowed), or fewer runtime.render.replicas or runtime.train_workers, or more "
            "runtime.render.subjects_per_server.",
        )
    _check_gpus(result)
    return result


@dataclass(frozen=True)
class TrialPlan:
    """What each trial of a sweep gets as one placement group, and how many run at once."""

    shares: tuple[Share, ...]  # of one trial; the first one is its own process, which trains
    at_once: int
    available: Resources

    def bundles(self) -> list[dict[str, float]]:
        """The placement group's bundles, the training process's first."""
        return [
            {"CPU": share.resources.num_cpus, "GPU": share.resources.num_gpus}
            for share in self.shares
            for _ in range(share.count)
        ]

    def table(self) -> str:
        """One trial's shares as a small text table, and how many trials run at once."""
        trials = "1 trial runs" if self.at_once == 1 else f"{self.at_once} trials run"
        return f"each trial:\n{_table(self.shares, self.available)}\n{trials} at once"


def plan_trials(
    config: RuntimeConfig, available: Resources, num_subjects: int, limit: int
) -> TrialPlan:
    """How many trials of a sweep run at once, each with its own servers; at least one must fit.

    Args:
        config: the runtime section.
        available: what the cluster has free for trials.
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
    alone = Plan(shares, available)
    if alone.cpus > available.cpus + _TOLERANCE or available.cpus < _TOLERANCE:
        raise ResourceError(
            f"Not even one trial fits: it needs {alone.cpus:g} logical CPUs, {available.cpus:g} "
            f"are free:\n{alone.table()}\n",
            f"Set runtime.num_cpus={max(math.ceil(alone.cpus), 1)} (logical slots, more than cores "
            "is allowed), or lower runtime.train_resources.num_cpus or "
            "runtime.render.resources.num_cpus, or raise runtime.render.subjects_per_server.",
        )
    _check_gpus(alone)
    at_once = 1
    while at_once < limit and _fit(shares, at_once + 1, available):
        at_once += 1
    return TrialPlan(shares, at_once, available)


def _fit(shares: tuple[Share, ...], trials: int, available: Resources) -> bool:
    every = tuple(Share(s.role, trials * s.count, s.resources) for s in shares)
    together = Plan(every, available)
    if together.cpus > available.cpus + _TOLERANCE:
        return False
    try:
        _check_gpus(together)
    except ResourceError:
        return False
    return True


def _check_gpus(result: Plan) -> None:
    """Fractions share a GPU but never straddle two: packs the largest first."""
    wanted = sorted(s.resources.num_gpus for s in result.shares for _ in range(s.count))[::-1]
    free = [1.0] * int(result.available.gpus + _TOLERANCE)
    for gpus in wanted:
        if gpus <= 0:
            continue
        if gpus < 1:
            slot = next((i for i, left in enumerate(free) if left + _TOLERANCE >= gpus), None)
            fits = slot is not None
            if slot is not None:
                free[slot] -= gpus
        else:
            whole = [i for i, left in enumerate(free) if left > 1 - _TOLERANCE]
            fits = len(whole) >= gpus
            for i in whole[: int(gpus)]:
                free[i] = 0.0
        if not fits:
            raise ResourceError(
                f"The plan needs {result.gpus:g} GPUs, {result.available.gpus:g} are free, and a "
                f"share may not straddle two GPUs:\n{result.table()}\n",
                "Lower runtime.render.resources.num_gpus or runtime.train_resources.num_gpus "
                "(fractions share a GPU; 0 computes on the CPU).",
            )


def _table(shares: tuple[Share, ...], available: Resources) -> str:
    rows: list[tuple[str, ...]] = [("role", "count", "CPUs each", "GPUs each", "CPUs", "GPUs")]
    for share in shares:
        each = share.resources
        numbers = (share.count, each.num_cpus, each.num_gpus, share.cpus, share.gpus)
        rows.append((share.role, *(f"{number:g}" for number in numbers)))
    totals = (sum(s.cpus for s in shares), sum(s.gpus for s in shares))
    rows.append(("all", "", "", "", f"{totals[0]:g}", f"{totals[1]:g}"))
    rows.append(("free", "", "", "", f"{available.cpus:g}", f"{available.gpus:g}"))
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in range(1, 6))])
        for row in rows
    ]
    return "\n".join(lines)

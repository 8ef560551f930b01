"""Who gets which share of which machine. Pure arithmetic: knows nothing about Ray's API.

Checked before anything starts: Ray would wait without a word for resources that never come. A plan
that cannot fit is refused with the numbers and with settings that were tried and make it fit.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from posegen_ray.config import RoleResources, RuntimeConfig
from posegen_ray.errors import ResourceError

_TOLERANCE = 1e-6  # Ray counts resources in steps of 1e-4
_SHOWN_NODES = 3  # in a row of the table
JOB, RENDER, TRAIN, STREAM = "job worker", "render server", "train worker", "sample stream"


@dataclass(frozen=True)
class Node:
    """What one machine has free for us."""

    name: str  # its address, for people
    cpus: float  # logical slots
    gpus: float = 0.0  # 1.5: one GPU, and half of another
    id: str = ""  # Ray's

    def gpu_slots(self) -> list[float]:
        """The free share of each GPU; Ray fills one before it begins another."""
        whole = int(self.gpus + _TOLERANCE)
        rest = self.gpus - whole
        return [1.0] * whole + ([rest] if rest > _TOLERANCE else [])


@dataclass(frozen=True)
class Share:
    """`count` processes of one role, each with the same reservation."""

    role: str
    count: int
    resources: RoleResources
    nodes: tuple[
        Node, ...
    ] = ()  # of the processes, in order; fewer than `count` where some find none

    @property
    def cpus(self) -> float:
        return self.count * self.resources.num_cpus

    @property
    def gpus(self) -> float:
        return self.count * self.resources.num_gpus

    @property
    def homeless(self) -> int:
        """How many processes find no place."""
        return self.count - len(self.nodes)


@dataclass(frozen=True)
class Plan:
    """A division of the machines among the roles."""

    shares: tuple[Share, ...]
    nodes: tuple[Node, ...]

    @property
    def cpus(self) -> float:
        return sum(share.cpus for share in self.shares)

    @property
    def gpus(self) -> float:
        return sum(share.gpus for share in self.shares)

    @property
    def fits(self) -> bool:
        return not any(share.homeless for share in self.shares)

    def nodes_of(self, role: str) -> tuple[Node, ...]:
        """Where the processes of a role go, in their order."""
        return next((share.nodes for share in self.shares if share.role == role), ())

    def table(self) -> str:
        """The plan as a small text table: who gets what, and where."""
        rows = [["role", "count", "CPUs each", "GPUs each", "CPUs", "GPUs", "where"]]
        for share in self.shares:
            each = share.resources
            numbers = (share.count, each.num_cpus, each.num_gpus, share.cpus, share.gpus)
            rows.append([share.role, *(f"{number:g}" for number in numbers), _where(share)])
        free = (sum(n.cpus for n in self.nodes), sum(n.gpus for n in self.nodes))
        places = f"{len(self.nodes)} node" + "s" * (len(self.nodes) != 1)
        rows.append(["all", "", "", "", f"{self.cpus:g}", f"{self.gpus:g}", ""])
        rows.append(["free", "", "", "", f"{free[0]:g}", f"{free[1]:g}", places])
        widths = [max(len(row[i]) for row in rows) for i in range(6)]
        lines = [
            [row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in range(1, 6)), row[6]]
            for row in rows
        ]
        return "\n".join("  ".join(line).rstrip() for line in lines)


def server_groups(subjects: list[str], subjects_per_server: int) -> list[tuple[str, ...]]:
    """Which subjects live together in one render server, in the given order."""
    starts = range(0, len(subjects), subjects_per_server)
    return [tuple(subjects[start : start + subjects_per_server]) for start in starts]


def plan(
    config: RuntimeConfig,
    nodes: Sequence[Node],
    num_subjects: int,
    training: bool = True,
    private: bool = True,
) -> Plan:
    """Gives every process a machine, or says with numbers why there are too few.

    Args:
        config: the runtime section.
        nodes: what each machine has free.
        num_subjects: how many subjects must be served at the same time; 0 for jobs alone.
        training: whether train workers and their sample streams run too.
        private: whether the only machine is this one, cut into as many slots as we like.

    Raises:
        ResourceError: some process finds no place; the message holds the table, and settings with
            which the plan was found to fit.
    """
    result = _divide(config, nodes, num_subjects, training)
    if result.fits:
        return result

    def settled(changed: RuntimeConfig, *more: Node) -> RuntimeConfig | None:
        """The settings if the plan fits with them (on a private cluster with enough slots)."""
        if private:
            needed = math.ceil(_divide(changed, (), num_subjects, training).cpus)
            changed = replace(changed, num_cpus=max(changed.num_cpus, needed))
        there = [private_node(changed)] if private else [*nodes, *more]
        return changed if _fits(changed, there, num_subjects, training) else None

    texts = [] if private else [_more_nodes(config, result, settled)]
    for changed in _smaller(config, num_subjects):
        found = settled(changed)
        if found is not None:
            texts.append("set " + " ".join(_differences(config, found)))
            break
    fix = ", or ".join(text for text in texts if text) or "free what others hold"
    raise ResourceError(f"{_reason(result)}\n{result.table()}\n", f"{fix[0].upper()}{fix[1:]}.")


def bundles(shares: Sequence[Share]) -> list[dict[str, float]]:
    """What each process reserves, in order, as Ray's bundles."""
    return [
        {"CPU": share.resources.num_cpus, "GPU": share.resources.num_gpus}
        for share in shares
        for _ in range(share.count)
    ]


def private_node(config: RuntimeConfig) -> Node:
    """The one machine of a private cluster."""
    return Node("this machine", config.num_cpus, config.num_gpus)


def place(shares: Sequence[Share], nodes: Sequence[Node]) -> tuple[Share, ...]:
    """Finds a machine for each process, in the given order, which must be that of their start.

    Shares lie within one node, and fractions of a GPU within one GPU. Processes are spread over
    the nodes; if then some find no place, they are packed. Within a node the choice of the GPU is
    Ray's: a fraction goes where it leaves the least, a whole number takes unused ones.
    """
    spread = _place(shares, nodes, pack=False)
    if not any(share.homeless for share in spread):
        return spread
    return _place(shares, nodes, pack=True)


def demand(config: RuntimeConfig, num_subjects: int, training: bool) -> list[Share]:
    """All processes of a run, in the order in which they start; see `plan`."""
    shares = [Share(JOB, config.job_workers, config.job_resources)]
    if num_subjects:
        groups = math.ceil(num_subjects / config.render.subjects_per_server)
        shares.append(Share(RENDER, groups * config.render.most_replicas, config.render.resources))
    if training:
        streams = config.train_workers * config.stream.actors
        shares.append(Share(TRAIN, config.train_workers, config.train_resources))
        shares.append(Share(STREAM, streams, config.stream.resources))
    return shares


def _divide(config: RuntimeConfig, nodes: Sequence[Node], subjects: int, training: bool) -> Plan:
    shares = demand(config, subjects, training)
    if sum(node.cpus for node in nodes) < _TOLERANCE:  # not even processes that reserve none start
        nodes = ()
    return Plan(place(shares, nodes), tuple(nodes))


def _fits(config: RuntimeConfig, nodes: Sequence[Node], subjects: int, training: bool) -> bool:
    shares = demand(config, subjects, training)
    for kind in ("cpus", "gpus"):  # quickly, before thousands of processes are placed in vain
        free = sum(getattr(node, kind) for node in nodes)
        if sum(getattr(share, kind) for share in shares) > free + _TOLERANCE:
            return False
    return _divide(config, nodes, subjects, training).fits


def _place(shares: Sequence[Share], nodes: Sequence[Node], pack: bool) -> tuple[Share, ...]:
    cpus = [node.cpus for node in nodes]
    gpus = [node.gpus for node in nodes]
    slots = [Counter(node.gpu_slots()) for node in nodes]  # free share -> GPUs of which so much is

    def order(wanted: RoleResources, index: int) -> tuple[float, ...]:
        """The smallest comes first: machines with GPUs are spared for those who use them."""
        spared = not wanted.num_gpus and nodes[index].gpus > 0
        left = (gpus[index] if wanted.num_gpus else 0.0, cpus[index])
        return (spared, *(left if pack else (-amount for amount in left)), index)

    placed = []
    for share in shares:
        wanted, homes = share.resources, list[Node]()
        queue = [order(wanted, index) for index in range(len(nodes))]
        heapq.heapify(queue)
        while queue and len(homes) < share.count:
            best = int(heapq.heappop(queue)[-1])
            if cpus[best] + _TOLERANCE < wanted.num_cpus:
                continue  # full, also for the rest of this role
            if not _take(slots[best], wanted.num_gpus):
                continue
            cpus[best] -= wanted.num_cpus
            gpus[best] -= wanted.num_gpus
            homes.append(nodes[best])
            heapq.heappush(queue, order(wanted, best))
        placed.append(replace(share, nodes=tuple(homes)))
    return tuple(placed)


def _take(slots: Counter[float], wanted: float) -> bool:
    """Gives one process its share of a node's GPUs; False where it has no room."""
    if wanted == 0:
        return True
    if wanted < 1:
        able = [free for free in slots if free + _TOLERANCE >= wanted]
        if not able:
            return False
        tightest = min(able)
        slots[round(tightest - wanted, 4)] += 1
        taken = Counter({tightest: 1})
    elif slots[1.0] >= wanted:
        taken = Counter({1.0: int(wanted)})
    else:
        return False
    slots -= taken  # in place; what is used up is no longer listed
    return True


# --- refusals -----------------------------------------------------------------------------------


def _where(share: Share) -> str:
    counts = sorted(Counter(node.name for node in share.nodes).items(), key=lambda c: (-c[1], c[0]))
    texts = [f"{count} on {name}" for name, count in counts[:_SHOWN_NODES]]
    if len(counts) > _SHOWN_NODES:
        rest = sum(count for _, count in counts[_SHOWN_NODES:])
        texts.append(f"{rest} on {len(counts) - _SHOWN_NODES} more")
    if share.homeless:
        texts.append(f"no place for {share.homeless}")
    return ", ".join(texts)


def _reason(result: Plan) -> str:
    cpus = sum(node.cpus for node in result.nodes)
    gpus = sum(node.gpus for node in result.nodes)
    if cpus < _TOLERANCE:
        return f"No logical CPU is free, and the plan needs {result.cpus:g}."
    if result.cpus > cpus + _TOLERANCE:
        return f"The plan needs {result.cpus:g} logical CPUs, {cpus:g} are free."
    if result.gpus > gpus + _TOLERANCE:
        return f"The plan needs {result.gpus:g} GPUs, {gpus:g} are free."
    share = next(share for share in result.shares if share.homeless)
    each = share.resources
    return (
        f"{share.homeless} of {share.count} {share.role}s ({each.num_cpus:g} CPUs and "
        f"{each.num_gpus:g} GPUs each) find no place: the {cpus:g} free CPUs and {gpus:g} GPUs "
        "would do in sum, but a share may not straddle two GPUs or two nodes."
    )


def _smaller(config: RuntimeConfig, num_subjects: int) -> Iterator[RuntimeConfig]:
    """Settings that ask for less: first as they are (a private cluster may need slots alone), then
    one of them changed, the ones that cost least first, then more and more of them at once."""
    yield config
    for path, values in _knobs(config, num_subjects):
        for value in values:
            yield _changed(config, path, value)
    changed = config
    for path, values in _knobs(config, num_subjects):
        changed = _changed(changed, path, values[-1])
        yield changed


def _knobs(config: RuntimeConfig, num_subjects: int) -> Iterator[tuple[str, list[float]]]:
    """Settings that make a plan smaller, each with ever smaller plans' values.

    The first ones change only how much is done at the same time; fewer train workers also change
    the batches, and GPU shares of 0 compute on the CPU.
    """
    render, workers = config.render, config.train_workers
    counts = {
        "render.max_replicas": [0] if render.max_replicas else [],
        "render.replicas": _halves(render.replicas),
        "job_workers": _halves(config.job_workers),
        "stream.actors": _halves(config.stream.actors),
        "render.subjects_per_server": _doubles(render.subjects_per_server, num_subjects),
        "train_workers": [count for count in _halves(workers) if not workers % count],
    }
    shares = {
        "render.resources": render.resources,
        "job_resources": config.job_resources,
        "train_resources": config.train_resources,
        "stream.resources": config.stream.resources,
    }
    for path, values in counts.items():
        if values:
            yield path, values
    for kind, levels in (("num_gpus", (1, 0.5, 0.25, 0.1, 0)), ("num_cpus", (1, 0.5, 0.25, 0.1))):
        for path, share in shares.items():
            values = [level for level in levels if level < getattr(share, kind)]
            if values:
                yield f"{path}.{kind}", values


def _halves(count: int) -> list[float]:
    return [count >> shift for shift in range(1, count.bit_length())]


def _doubles(count: int, most: int) -> list[float]:
    values = [count << shift for shift in range(1, most.bit_length() + 1)]
    return [*(value for value in values if value < most), *([most] if count < most else [])]


def _more_nodes(
    config: RuntimeConfig, result: Plan, settled: Callable[..., RuntimeConfig | None]
) -> str:
    """One machine that holds what finds no place."""
    homeless = [(share.homeless, share.resources) for share in result.shares]
    cpus = max(1, math.ceil(sum(n * each.num_cpus for n, each in homeless) - _TOLERANCE))
    gpus = sum(_gpus_for(count, each.num_gpus) for count, each in homeless)
    if settled(config, Node("new", cpus, gpus)) is None:
        return ""
    return f"add a node with {cpus} CPUs and {gpus} GPUs"


def _gpus_for(count: int, share: float) -> int:
    """How many empty GPUs hold so many shares."""
    if share >= 1 or share == 0:
        return int(count * share)
    return math.ceil(count / int(1 / share + _TOLERANCE))


def _changed(config: Any, path: str, value: float) -> Any:
    """The settings with one of them replaced; counts stay whole numbers."""
    name, _, rest = path.partition(".")
    old = getattr(config, name)
    new = _changed(old, rest, value) if rest else type(old)(value)
    return replace(config, **{name: new})


def _differences(before: Any, after: Any, path: str = "runtime") -> Iterator[str]:
    """`path=value` of every setting that differs, as the command line takes it."""
    for part in fields(before):
        old, new = getattr(before, part.name), getattr(after, part.name)
        if is_dataclass(old):
            yield from _differences(old, new, f"{path}.{part.name}")
        elif old != new:
            yield f"{path}.{part.name}={new:g}"

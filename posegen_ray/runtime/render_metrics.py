"""What render servers and pools tell Ray's metrics (Prometheus, Grafana)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ray.util.metrics import Counter, Gauge, Histogram

from posegen_ray.meter import CallMeter
from posegen_ray.runtime.subject_cache import SubjectCache

if TYPE_CHECKING:
    from posegen_ray.runtime.dispatch import Call
    from posegen_ray.runtime.failure_policy import Failure
    from posegen_ray.runtime.render_server import ServerHealth

# upper ends of the latency's buckets, in seconds; quantiles come from these
_SECONDS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 100]


class ServerMetrics:
    """One server's metrics, tagged with its name."""

    def __init__(self, server: str) -> None:
        self._tags = {"server": server}
        self._loads = self._evictions = 0
        keys = ("server",)
        self._waiting = Gauge("posegen_render_waiting", "Calls that wait for their turn.", keys)
        self._latency = Histogram(
            "posegen_render_seconds",
            "From a call's arrival to its answer.",
            boundaries=_SECONDS,
            tag_keys=("server", "method"),
        )
        self._pictures = Counter("posegen_render_pictures", "Pictures rendered.", keys)
        self._loaded = Counter("posegen_render_subject_loads", "Subjects loaded.", keys)
        self._evicted = Counter("posegen_render_subject_evictions", "Subjects dropped.", keys)

    def answered(self, method: str, pictures: int, seconds: float, waiting: int) -> None:
        """A call was answered; so many wait now."""
        self._waiting.set(waiting, self._tags)
        self._latency.observe(seconds, {**self._tags, "method": method})
        if method == "render":
            self._pictures.inc(pictures, self._tags)

    def subjects(self, cache: SubjectCache[Any]) -> None:
        """Reports what was loaded and dropped since the last time."""
        if cache.loads > self._loads:
            self._loaded.inc(cache.loads - self._loads, self._tags)
        if cache.evictions > self._evictions:
            self._evicted.inc(cache.evictions - self._evictions, self._tags)
        self._loads, self._evictions = cache.loads, cache.evictions


class PoolMeter:
    """What a client saw and what servers tell, between two readings. Picklable."""

    def __init__(self) -> None:
        self._calls = CallMeter()
        self._replaced = 0
        self._before: dict[str, ServerHealth] = {}
        self._read = time.monotonic()

    def noted(self, call: Call, seconds: float) -> None:
        """One of this client's calls was answered."""
        self._calls.add(len(call.arguments[0]) if call.method == "render" else 0, seconds)

    def replaced(self, server: str, failure: Failure) -> None:
        """This client had a server replaced."""
        self._replaced += 1
        replaced = Counter(
            "posegen_render_replaced", "Servers replaced by a client.", ("server", "reason")
        )
        replaced.inc(1, {"server": server, "reason": failure.name.lower()})

    def read(self, servers: Mapping[str, ServerHealth]) -> dict[str, float]:
        """This client's latencies; all servers' pictures a second (with and without gradients),
        calls in work and waiting on average, subjects loaded and dropped, seconds for loading,
        processes that ended and started again; servers replaced by this client.

        Args:
            servers: their healths by name.
        """
        now = time.monotonic()
        seconds, self._read = max(now - self._read, 1e-9), now
        changes = [_change(self._before.get(name), health) for name, health in servers.items()]
        restarted = sum(
            name in self._before and self._before[name].load.process_id != health.load.process_id
            for name, health in servers.items()
        )
        total = {key: sum(change[key] for change in changes) for key in _COUNTED}
        self._before.update(servers)
        replaced, self._replaced = self._replaced, 0
        return {
            **self._calls.read(),
            "images_per_s": total["pictures"] / seconds,
            "calls_in_work": total["busy_s"] / seconds,
            "calls_waiting": total["waited_s"] / seconds,
            "subject_loads": total["loads"],
            "subject_evictions": total["evictions"],
            "subject_load_s": total["load_s"],
            "servers": float(len(servers)),
            "servers_restarted": float(restarted),
            "servers_replaced": float(replaced),
            "server_memory_mb": sum(health.memory_mb for health in servers.values()),
        }


_COUNTED = ("pictures", "busy_s", "waited_s", "loads", "evictions", "load_s")


def _change(before: ServerHealth | None, now: ServerHealth) -> dict[str, float]:
    """What a server's process did since the last reading, or since it started."""
    found = _counts(now)
    if before is None or before.load.process_id != now.load.process_id:
        return found
    return {key: found[key] - value for key, value in _counts(before).items()}


def _counts(health: ServerHealth) -> dict[str, float]:
    values = {**vars(health.load), **vars(health)}
    return {key: float(values[key]) for key in _COUNTED}

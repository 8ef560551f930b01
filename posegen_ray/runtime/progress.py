"""Progress bars on the driver that follow work in other processes.

A module of its own, without torch: the counter is a process, which needs only names and numbers.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

import ray

from posegen_ray.console import Console

_POLL_S = 0.3


@ray.remote(num_cpus=0)
class Progress:
    """Counts finished units by name; loses nothing but a progress bar when it dies."""

    def __init__(self) -> None:
        self._done: dict[str, int] = {}

    def add(self, name: str, count: int) -> None:
        self._done[name] = self._done.get(name, 0) + count

    def done(self, name: str) -> int:
        return self._done.get(name, 0)


@dataclass(frozen=True)
class _Advance:
    """Reports units from any process, at most a few times a second."""

    actor: Any
    name: str

    def __call__(self, count: int) -> None:
        self.actor.add.remote(self.name, count)


class Bar:
    """A progress bar on the driver that follows work in other processes."""

    def __init__(self, console: Console, actor: Any, label: str, total: int, unit: str) -> None:
        self.advance = _Advance(actor, f"{label}/{time.monotonic_ns()}")
        self._bar = console.bar(label, total, unit)
        self._done = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Bar:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(timeout=5)
        self._bar.close()

    def done(self) -> int:
        """How many units were reported, as far as is known."""
        return self._done

    def _follow(self) -> None:
        while not self._over.wait(_POLL_S):
            try:
                done = ray.get(self.advance.actor.done.remote(self.advance.name), timeout=5)
            except ray.exceptions.RayError:
                continue  # a bar that stands still harms nobody
            self._bar.update(done - self._done)
            self._done = done

"""One call at a time, in one thread. Knows who waits, for how long, and how long the present takes.

One thread, since memory that each of several threads had freed stayed with that thread, where each
had a heap of its own (without MALLOC_ARENA_MAX=1, see `runtime.session`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


class WorkQueue:
    """Runs calls from many threads in a single one, in the order in which they come."""

    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(1, "work")
        self._book = threading.Lock()
        self._since: float | None = None
        self._noted = time.monotonic()
        self._busy_s = self._waited_s = 0.0
        self.waiting = 0  # calls that have not begun

    @property
    def present_s(self) -> float:
        """How long the present call has taken so far; 0 without one."""
        since = self._since
        return 0.0 if since is None else max(time.monotonic() - since, 1e-9)

    def totals(self) -> tuple[float, float]:
        """Seconds in which a call was at work, and summed seconds of waiting, up to now."""
        with self._book:
            self._note()
            return self._busy_s, self._waited_s

    def run(self, call: Callable[[], Result]) -> Result:
        """Waits for the call's turn, and for its answer. Raises what it raises."""
        with self._book:
            self._note()
            self.waiting += 1
        return self._worker.submit(self._measured, call).result()

    def _measured(self, call: Callable[[], Result]) -> Result:
        with self._book:
            self._since = self._note()
            self.waiting -= 1
        try:
            return call()
        finally:
            with self._book:
                self._note()
                self._since = None

    def _note(self) -> float:
        """Adds up what happened since the last change."""
        now = time.monotonic()
        passed, self._noted = now - self._noted, now
        self._waited_s += self.waiting * passed
        self._busy_s += passed if self._since is not None else 0.0
        return now

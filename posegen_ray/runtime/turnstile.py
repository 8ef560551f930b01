"""One call at a time. Knows who waits, for how long, and how long the present one has taken."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Turnstile:
    """Lets one thread through at a time, and measures."""

    def __init__(self) -> None:
        self._gate, self._book = threading.Lock(), threading.Lock()
        self._since: float | None = None
        self._noted = time.monotonic()
        self._busy_s = self._waited_s = 0.0
        self.waiting = 0  # threads before the gate now

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

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Waits for the gate and passes it; the block is the call."""
        with self._book:
            self._note()
            self.waiting += 1
        self._gate.acquire()
        with self._book:
            now = self._note()
            self.waiting -= 1
            self._since = now
        try:
            yield
        finally:
            with self._book:
                self._note()
                self._since = None
            self._gate.release()

    def _note(self) -> float:
        """Adds up what happened since the last change."""
        now = time.monotonic()
        passed, self._noted = now - self._noted, now
        self._waited_s += self.waiting * passed
        self._busy_s += passed if self._since is not None else 0.0
        return now

"""Which subjects a render server has in memory. Pure: knows nothing about Ray or rendering."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Loaded = TypeVar("Loaded")


class SubjectCache(Generic[Loaded]):
    """Loads subjects on demand and keeps at most `limit`; the least recently used goes first.

    What is loaded costs time, never changes an answer. One thread at a time may call `get`.

    Args:
        load: makes a subject ready to be rendered.
        limit: how many are kept, at least 1.
    """

    def __init__(self, load: Callable[[str], Loaded], limit: int) -> None:
        self._load, self._limit = load, limit
        self._held: OrderedDict[str, Loaded] = OrderedDict()
        self._since: float | None = None
        self.loads, self.evictions, self.load_s = 0, 0, 0.0

    @property
    def loaded(self) -> tuple[str, ...]:
        """Who is in memory, the least recently used first."""
        return tuple(self._held)

    @property
    def loading_s(self) -> float:
        """How long the subject being loaded has taken so far; 0 when none is."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    def get(self, subject: str) -> Loaded:
        """The subject, ready to be rendered. Raises what `load` raises."""
        if subject not in self._held:
            while len(self._held) >= self._limit:  # first, so that never one more is in memory
                self._held.popitem(last=False)
                self.evictions += 1
            self._held[subject] = self._timed(subject)
        self._held.move_to_end(subject)
        return self._held[subject]

    def _timed(self, subject: str) -> Loaded:
        self._since = start = time.monotonic()
        try:
            loaded = self._load(subject)
        finally:
            self._since = None
        self.loads += 1
        self.load_s += time.monotonic() - start
        return loaded

"""How fast calls are answered. Pure; the same figures for every renderer."""

from __future__ import annotations

import time
from collections import deque

import numpy as np

_LATEST = 1000  # calls whose times are remembered


class CallMeter:
    """Counts pictures, and remembers how long the latest calls took. Picklable."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=_LATEST)
        self._pictures = 0
        self._since = time.monotonic()

    def add(self, pictures: int, seconds: float) -> None:
        """Notes one call."""
        self._seconds.append(seconds)
        self._pictures += pictures

    def read(self) -> dict[str, float]:
        """Since the last reading: pictures a second, and the calls' times; none without calls."""
        now = time.monotonic()
        rate = self._pictures / max(now - self._since, 1e-9)
        seconds = list(self._seconds)
        self._seconds.clear()
        self._pictures, self._since = 0, now
        if not seconds:
            return {}
        middle, late = np.quantile(seconds, (0.5, 0.99))
        return {
            "images_per_s": rate,
            "latency_p50_ms": 1000 * float(middle),
            "latency_p99_ms": 1000 * float(late),
        }

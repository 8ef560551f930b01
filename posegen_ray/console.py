"""What a person sees on the terminal: phases, progress with ETA, plain lines. Writes to stderr.

Results (tables, JSON) go to stdout, so that they can be piped.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


class Console:
    """Prints phases and progress bars, and remembers how long each phase took.

    Args:
        quiet: print nothing (the timings are still kept).
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.timing_s: dict[str, float] = {}

    def say(self, text: str) -> None:
        """One line."""
        if not self.quiet:
            tqdm.write(text, file=sys.stderr)

    @contextmanager
    def phase(self, name: str, text: str) -> Iterator[None]:
        """Announces a phase, times it, and says how long it took. Repeated names add up."""
        self.say(f"{text} …")
        start = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - start
            self.timing_s[name] = self.timing_s.get(name, 0.0) + took
        self.say(f"  {text}: {took:.0f} s")

    def track(
        self, items: Iterable[Item], label: str, total: int | None = None, unit: str = "it"
    ) -> Iterator[Item]:
        """A progress bar with ETA over `items`; it disappears when it is done."""
        if total is None and isinstance(items, Sized):
            total = len(items)
        bar = self.bar(label, total, unit)
        try:
            for item in items:
                yield item
                bar.update()
        finally:
            bar.close()

    def bar(self, label: str, total: int | None, unit: str = "it") -> tqdm[Any]:
        """A progress bar to advance by hand (`bar.update(n)`, `bar.close()`)."""
        bar: tqdm[Any] = tqdm(
            desc=f"  {label}",
            total=total,
            unit=unit,
            leave=False,
            disable=self.quiet,
            file=sys.stderr,
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 20.0,
        )
        return bar

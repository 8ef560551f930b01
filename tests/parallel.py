"""Which tests run beside which, when pytest-xdist shares them out (`make test` uses two processes).

A file's tests stay together, since they share what their fixtures made; so do all of tests/runtime,
which share one Ray cluster. The longest file, which starts a cluster of its own, begins; those of
tests/runtime come in the middle: after it, as a rule, and not so late that one process is left with
them when the other has nothing more to do.
"""

from __future__ import annotations

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

FIRST, TOGETHER = "tests/test_experiment.py", "tests/runtime/"


def place(item: pytest.Item) -> int:
    """Sorts tests by when they should begin."""
    return 0 if item.nodeid.startswith(FIRST) else 1


class Scheduler(LoadScopeScheduling):
    """Hands out files, and tests/runtime as one, in the order in which they were collected."""

    def __init__(self, config: pytest.Config, log: Producer | None = None) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return TOGETHER if nodeid.startswith(TOGETHER) else nodeid.split("::", 1)[0]

"""What the fault matrix shares: each test breaks one thing and notes how long recovery took."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # before Ray is imported: loopback only
sys.path.insert(1, str(Path(__file__).parents[1] / "runtime"))  # for `import runtime_fakes`

import pytest

Note = Callable[[str, float], None]  # what was broken, seconds from then until work went on
_TIMES = pytest.StashKey[list[tuple[str, float]]]()


@pytest.fixture
def note_recovery(request: pytest.FixtureRequest) -> Note:
    """Notes a recovery time for the table at the end."""

    def note(fault: str, seconds: float) -> None:
        request.config.stash.setdefault(_TIMES, []).append((fault, seconds))

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    times = terminalreporter.config.stash.get(_TIMES, [])
    if times:
        terminalreporter.section("recovery times")
        for fault, seconds in times:
            terminalreporter.line(f"{seconds:6.1f} s  {fault}")

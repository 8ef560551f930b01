"""What the fault matrix shares: each test breaks one thing and notes how long recovery took."""

from __future__ import annotations

from collections.abc import Callable

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

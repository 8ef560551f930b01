"""Processes by their numbers, as the kernel knows them."""

from __future__ import annotations

import time
from pathlib import Path


def descendants(ancestor: int) -> list[int]:
    """The process and all that it started, and they in turn."""
    found = [ancestor]
    for parent in found:
        for file in (Path("/proc") / str(parent) / "task").glob("*/children"):
            try:
                found += map(int, file.read_text().split())
            except OSError:
                continue
    return found


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and waits to be reaped does not."""
    try:
        stat = (Path("/proc") / str(pid) / "stat").read_text()
    except OSError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] != "Z"


def find_process(name: str, ancestor: int, patience_s: float = 60) -> int:
    """The number of a process that this one started, as soon as it is there; by its title."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        for pid in descendants(ancestor):
            try:
                command = (Path("/proc") / str(pid) / "cmdline").read_bytes()
            except OSError:
                continue
            if name in command.decode(errors="replace"):
                return pid
        time.sleep(0.2)
    raise AssertionError(f"no process {name}")

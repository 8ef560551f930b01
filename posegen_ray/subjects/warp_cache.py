"""Compiles the Warp kernels once per machine, whatever the number of processes that start at once.

Compiling takes seconds; the result is shared through a cache folder, behind a lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import warp as wp

from posegen_ray.assets import cache_folder
from posegen_ray.errors import ResourceError


def warp_folder() -> Path:
    """Where compiled kernels are kept: $WARP_CACHE_PATH, else `warp` in the project's cache."""
    chosen = os.environ.get("WARP_CACHE_PATH")
    return Path(chosen).expanduser() if chosen else cache_folder() / "warp"


def warp_device_name(device: torch.device) -> str:
    """Warp's name of a torch device."""
    return "cpu" if device.type == "cpu" else f"cuda:{device.index or 0}"


@functools.cache
def prepare(device: str, module: str) -> None:
    """Initialises Warp quietly and loads (or compiles, behind a lock) a kernel module for a device.

    Args:
        device: "cpu" or "cuda:<index>".
        module: name of the Python module that defines the kernels.

    Raises:
        ResourceError: the cache folder cannot be written, or the device is not there.
    """
    folder = warp_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise ResourceError(
            f"The folder for compiled kernels {folder} cannot be written ({error.strerror}).",
            "Set POSEGEN_CACHE (or WARP_CACHE_PATH) to a folder that can.",
        ) from error
    # inherited by child processes, and read by other users of Warp in this one
    os.environ["WARP_CACHE_PATH"] = str(folder)
    wp.config.log_level = wp.LOG_ERROR
    with _without_driver_warning():
        wp.init()
    if device != "cpu" and device not in {d.alias for d in wp.get_cuda_devices()}:
        raise ResourceError(
            f"Warp sees no device {device!r}.", "Use device cpu, or check the NVIDIA driver."
        )
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wp.load_module(importlib.import_module(module), device=device)


@contextlib.contextmanager
def _without_driver_warning() -> Iterator[None]:
    """Where there is no GPU, Warp's native library says so on stderr in every process; once is too
    often."""
    if torch.cuda.is_available():
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)

"""Lets the process keep the memory that it frees.

A batch of pictures takes tens of MB and frees them, over and over. The C library gives such
memory back to the kernel, which clears every page anew for the next batch. Whether it does depends
on what else was taken before; where it does, that is a quarter of a picture's time.
"""

from __future__ import annotations

import ctypes
import functools

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names in glibc's malloc.h
KEPT = 2**28  # bytes: as much is kept, and pieces up to this size are taken from what is


@functools.cache
def keep_freed_memory() -> bool:
    """Raises the thresholds of glibc's malloc, once; False where there is another C library."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(name, KEPT) == 1 for name in (_TRIM_THRESHOLD, _MMAP_THRESHOLD))

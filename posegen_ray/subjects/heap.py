"""Lets the process keep the memory that it frees, and take it again in the same places.

A batch of pictures takes tens of MB and frees them, over and over. The C library gives such
memory back to the kernel, which clears every page anew for the next batch. Whether it does depends
on what else was taken before; where it does, that is a quarter of a picture's time. The largest of
them lie in `scratch`. Others above LARGE, some of which are kept for a gradient, are taken from the
kernel where no room is free, and given back: in line with the rest they would leave holes, of a
tenth of a server's memory.
"""

from __future__ import annotations

import ctypes
import functools
import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names in glibc's malloc.h
KEPT = 2**28  # bytes: as much is kept
LARGE = 2**23  # bytes: larger pieces need not be
_scratch = threading.local()  # name -> buffer


@functools.cache
def keep_freed_memory() -> bool:
    """Raises the thresholds of glibc's malloc, once; False where there is another C library."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    wanted = {_TRIM_THRESHOLD: KEPT, _MMAP_THRESHOLD: LARGE}
    return all(mallopt(name, size) == 1 for name, size in wanted.items())


def scratch(
    name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str
) -> Tensor:
    """A tensor with anything in it, for a moment: the thread's next one of this name overwrites it.

    Large tensors that come and go between small ones that stay would leave holes, of as much as
    they take. On CUDA it is like `torch.empty`, whose memory torch keeps for each stream.
    """
    device, count = torch.device(device), math.prod(shape)
    if device.type != "cpu":
        return torch.empty(*shape, dtype=dtype, device=device)
    buffer: Tensor | None = getattr(_scratch, name, None)
    size = count * dtype.itemsize
    if buffer is None or buffer.numel() < size:
        setattr(_scratch, name, None)  # free it first
        buffer = torch.empty(size, dtype=torch.uint8)
        setattr(_scratch, name, buffer)
    return buffer[:size].view(dtype).view(*shape)

"""Lets the process keep the memory that it frees, and take it again in the same places.

A batch of pictures takes tens of MB and frees them, over and over. The C library gives such
memory back to the kernel, which clears every page anew for the next batch. Whether it does depends
on what else was taken before; where it does, that is a quarter of a picture's time. The largest of
them lie in `scratch`; what is large and kept for a gradient is `mapped` for itself: in line with
the rest it would leave holes, of a tenth of a server's memory.
"""

from __future__ import annotations

import ctypes
import functools
import math
import mmap
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names in glibc's malloc.h
KEPT = 2**28  # bytes: as much is kept, and pieces up to this size are taken from what is
_scratch = threading.local()  # name -> buffer


@functools.cache
def keep_freed_memory() -> bool:
    """Raises the thresholds of glibc's malloc, once; False where there is another C library."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(name, KEPT) == 1 for name in (_TRIM_THRESHOLD, _MMAP_THRESHOLD))


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


def mapped(name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of zeros in pages of its own, taken as they are written to and given back with it.

    On CUDA it is like `torch.empty`.
    """
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size == 0:
        return torch.empty(*shape, dtype=dtype, device=device)
    return torch.frombuffer(mmap.mmap(-1, size), dtype=dtype).view(*shape)

"""A process that draws keeps the memory that it frees."""

import ctypes
import resource
from pathlib import Path

import torch

from posegen_ray.subjects.heap import KEPT, keep_freed_memory, mapped, scratch


def test_memory_that_was_freed_is_not_taken_from_the_kernel_again() -> None:
    assert keep_freed_memory()  # there is glibc where these tests run
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    size = KEPT // 6  # beyond what the default thresholds grow to, below ours

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        place = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(size)))
        ctypes.memset(place, 1, size)
        libc.free(place)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    pages = size // resource.getpagesize()
    assert min(faults() for _ in range(3)) < 0.05 * pages


def test_what_is_mapped_takes_what_is_written_to_until_it_goes() -> None:
    def resident() -> float:  # MB
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6

    keep_freed_memory()
    before = resident()
    tensor = mapped("met", (50_000, 1000), torch.int32, torch.device("cpu"))  # 200 MB
    assert resident() - before < 5
    tensor[:10_000] = 1
    assert 35 < resident() - before < 45
    kept = tensor.view(-1)[5:]
    del tensor
    assert resident() - before > 35
    assert kept[0] == 1
    del kept
    assert resident() - before < 5


def test_scratch_is_overwritten_by_the_next_of_its_name_alone() -> None:
    first = scratch("one", (4, 3), torch.float32, "cpu").fill_(1)
    other = scratch("other", (12,), torch.int64, "cpu").fill_(2)
    again = scratch("one", (2, 2), torch.int64, "cpu").fill_(3)
    assert again.data_ptr() == first.data_ptr()
    assert (other == 2).all()
    larger = scratch("one", (1000,), torch.float32, "cpu")
    assert larger.shape == (1000,)
    assert scratch("one", (4, 3), torch.float32, "cpu").data_ptr() == larger.data_ptr()

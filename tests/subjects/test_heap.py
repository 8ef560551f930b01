"""A process that draws keeps the memory that it frees."""

import ctypes
import resource

import torch

from posegen_ray.subjects.heap import KEPT, LARGE, keep_freed_memory, scratch


def taken_anew(size: int, count: int) -> float:
    """The share of pages that the kernel clears for pieces that were free before."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        places = [ctypes.c_void_p(libc.malloc(ctypes.c_size_t(size))) for _ in range(count)]
        for place in places:
            ctypes.memset(place, 1, size)
        for place in places:
            libc.free(place)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    return min(faults() for _ in range(3)) / (count * size // resource.getpagesize())


def test_memory_that_was_freed_is_not_taken_from_the_kernel_again() -> None:
    assert keep_freed_memory()  # there is glibc where these tests run
    # more than the default thresholds let stay
    assert taken_anew(3 * LARGE // 4, KEPT // (2 * LARGE)) < 0.05


def test_scratch_is_overwritten_by_the_next_of_its_name_alone() -> None:
    first = scratch("one", (4, 3), torch.float32, "cpu").fill_(1)
    other = scratch("other", (12,), torch.int64, "cpu").fill_(2)
    again = scratch("one", (2, 2), torch.int64, "cpu").fill_(3)
    assert again.data_ptr() == first.data_ptr()
    assert (other == 2).all()
    larger = scratch("one", (1000,), torch.float32, "cpu")
    assert larger.shape == (1000,)
    assert scratch("one", (4, 3), torch.float32, "cpu").data_ptr() == larger.data_ptr()

"""A process that draws keeps the memory that it frees."""

import ctypes
import resource

from posegen_ray.subjects.heap import KEPT, keep_freed_memory


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

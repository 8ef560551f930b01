"""A process that draws keeps the memory that it frees."""

import resource

import torch

from posegen_ray.subjects.heap import KEPT, keep_freed_memory


def test_memory_that_was_freed_is_not_taken_from_the_kernel_again() -> None:
    assert keep_freed_memory()  # there is glibc where these tests run
    numbers = KEPT // 8 // 4  # far beyond the default thresholds, below ours
    size = 4 * numbers

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(numbers)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    pages = size // resource.getpagesize()
    assert min(faults() for _ in range(3)) < 0.05 * pages

import ctypes
import resource

import torch

from italic.training import allocator

SIZE = 4 * 2**20  # floats, 16 MiB: 4,096 pages


def page_faults() -> int:
    """Page faults of five allocations of twelve simultaneous tensors."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        tensors = [torch.ones(SIZE) for _ in range(12)]
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_freed_memory_is_used_again() -> None:
    # The initial thresholds of glibc, which raises them as blocks are freed unless they are set:
    # each tensor is then mapped and unmapped, whatever was allocated before.
    for threshold in (allocator._MMAP_THRESHOLD, allocator._TRIM_THRESHOLD):
        assert ctypes.CDLL(None).mallopt(threshold, 2**17)
    before = page_faults()
    allocator.keep_freed_memory()
    page_faults()
    assert page_faults() < before / 10

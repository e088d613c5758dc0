import resource

import torch

from italic.training.allocator import keep_freed_memory

SIZE = 4 * 2**20  # floats, 16 MiB: 4,096 pages


def page_faults() -> int:
    """Page faults of five allocations of twelve simultaneous tensors."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        tensors = [torch.ones(SIZE) for _ in range(12)]
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_freed_memory_is_used_again() -> None:
    keep_freed_memory()
    page_faults()
    assert page_faults() < 5 * 12 * 4096 / 10

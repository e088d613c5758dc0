"""Settings of the C library's memory allocator."""

from __future__ import annotations

import ctypes

# Parameters of glibc's mallopt, and the largest threshold that it accepts.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _LARGEST_THRESHOLD = -1, -3, 2**25


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks of up to 32 MiB for the rest of the process.

    By default, glibc returns large blocks to the kernel immediately. The kernel then clears the
    pages of every new tensor, which takes a tenth of the time of a training update of
    `model=lattice`. The function does nothing if the C library has no `mallopt`.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)

"""Process-wide switches that exact inference needs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, lru_cache
from typing import Any

import torch
from torch.nn import functional as F


@cache
def forks_compute_with_one_thread() -> None:
    """From now on, processes that are forked off this one begin with one thread of PyTorch.

    A fork has none of OpenMP's other threads, and waits for them for ever once it gives them work.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork)


def _after_fork() -> None:
    torch.set_num_threads(1)
    _Inside.lock = threading.Lock()  # which a thread that is not here may have held


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Switch off what is not a plain sum of float32 products.

    Networks on 8-bit operands need autocasting off, and nothing more: their sums are products of
    matrices, and bfloat16 or TF32 hold their operands. The rest is for those on grids: NNPACK,
    cuDNN's Winograd, and the TF32 or bfloat16 that the host program or its environment may allow.
    Threads may be in here together: the last one to leave restores what the first one found.
    """
    forks_compute_with_one_thread()
    with ExitStack() as own:
        for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            own.enter_context(torch.autocast(device, enabled=False))  # of this thread
        with _Inside.lock:
            if not _Inside.threads:
                _Inside.restore = _switch_off()
            _Inside.threads += 1
        try:
            yield
        finally:
            with _Inside.lock:
                _Inside.threads -= 1
                if not _Inside.threads:
                    _Inside.restore()


class _Inside:
    """The threads in `exact_arithmetic`, and what the last one of them calls."""

    lock = threading.Lock()
    threads = 0
    restore: Callable[[], None]


def _switch_off() -> Callable[[], None]:
    """Switch off; → what restores."""
    backends: Any = torch.backends
    cudnn, mkldnn, nnpack = backends.cudnn, backends.mkldnn, backends.nnpack
    products = backends.cuda.matmul, mkldnn.matmul, mkldnn.conv
    enabled = cudnn.enabled, mkldnn.enabled
    precisions = [product.fp32_precision for product in products]
    for product in products:
        product.fp32_precision = "ieee"
    (nnpack_enabled,) = nnpack.set_flags(False)
    cudnn.enabled, mkldnn.enabled = False, mkldnn.enabled and _onednn_is_exact()

    def restore() -> None:
        cudnn.enabled, mkldnn.enabled = enabled
        nnpack.set_flags(nnpack_enabled)
        for product, precision in zip(products, precisions, strict=True):
            product.fp32_precision = precision

    return restore


@lru_cache
def _onednn_is_exact() -> bool:
    """Whether oneDNN keeps float32: ONEDNN_DEFAULT_FPMATH_MODE=BF16 overrides what PyTorch asks."""
    kind: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}  # whatever the defaults are
    x = torch.full((2, 48, 16, 16), 257, **kind)  # its 9 bits are one too many for bfloat16
    return bool((F.conv2d(x, torch.ones(48, 48, 3, 3, **kind)) == 48 * 9 * 257).all())

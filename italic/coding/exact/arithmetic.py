"""Process-wide settings of PyTorch that exact inference needs."""

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
    """Make processes that are forked from now on start with one PyTorch thread.

    A forked process has only one of OpenMP's threads. It would wait forever for the others as soon
    as it used them.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork)


def _after_fork() -> None:
    torch.set_num_threads(1)
    _ActiveThreads.lock = threading.Lock()  # a thread of the parent may have held the old one


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Disable every algorithm that does not compute plain sums of float32 products.

    Networks with int8 arithmetic only need autocasting to be off: their sums are matrix products,
    whose operands fit into bfloat16 and TF32. The other settings are for networks with grids. They
    disable NNPACK, cuDNN's Winograd algorithm, and the TF32 or bfloat16 that the host program or
    its environment may allow. Several threads may use the context at the same time: the last
    one to leave restores the settings that the first one found.
    """
    forks_compute_with_one_thread()
    with ExitStack() as thread_settings:
        for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            thread_settings.enter_context(torch.autocast(device, enabled=False))
        with _ActiveThreads.lock:
            if not _ActiveThreads.threads:
                _ActiveThreads.restore = _switch_off()
            _ActiveThreads.threads += 1
        try:
            yield
        finally:
            with _ActiveThreads.lock:
                _ActiveThreads.threads -= 1
                if not _ActiveThreads.threads:
                    _ActiveThreads.restore()


class _ActiveThreads:
    """Number of threads in `exact_arithmetic`, and the function that restores the settings."""

    lock = threading.Lock()
    threads = 0
    restore: Callable[[], None]


def _switch_off() -> Callable[[], None]:
    """Disable inexact algorithms; return a function that restores the settings."""
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
    """Whether oneDNN computes in float32.

    ONEDNN_DEFAULT_FPMATH_MODE=BF16 overrides the precision that PyTorch requests.
    """
    kind: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}  # independent of the defaults
    x = torch.full((2, 48, 16, 16), 257, **kind)  # 9 bits, one more than bfloat16 holds
    return bool((F.conv2d(x, torch.ones(48, 48, 3, 3, **kind)) == 48 * 9 * 257).all())

"""Exact products of int8 matrices, by int8 or float32 instructions, whichever is faster."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from italic.errors import SettingError

# Environment variable: "int8" or "float32" selects the implementation instead of the probe.
VARIABLE = "ITALIC_PRODUCTS"
SIZE_MULTIPLE = 8  # int8 products on CUDA need rows of weights and columns in multiples of this,
MIN_ROWS = 17  # and at least this number of rows of inputs


def product(rows: Tensor, weight: Tensor) -> Tensor:
    """Compute rows · weightᵀ; it is exact if all sums are below 2^24.

    Args:
        rows: int8 (n, K).
        weight: int8 (O, K).

    Returns:
        (n, O), int32 or, with the same values, float32.
    """
    if not len(rows):
        return rows.new_empty((0, len(weight)), dtype=torch.int32)
    if rows.is_cuda:
        return _on_cuda(rows, weight)
    return int8_product(rows, weight) if use_int8() else float32_product(rows, weight)


def int8_product(rows: Tensor, weight: Tensor) -> Tensor:
    """`product` by int8 instructions with int32 accumulators.

    Rows may overlap in memory, as the patches of an image of one column do. `_int_mm` gives wrong
    sums for such rows, so they are copied.
    """
    return torch._int_mm(rows.contiguous(), weight.t())


def float32_product(rows: Tensor, weight: Tensor) -> Tensor:
    """`product` in float32; it stays exact with bfloat16 or TF32 inside, not with autocasting."""
    return F.linear(rows.float(), weight.float())


def _on_cuda(rows: Tensor, weight: Tensor) -> Tensor:
    """`product` by int8 instructions of a GPU; the matrices are padded with zeros."""
    (count, terms), outputs = rows.shape, len(weight)
    padding = -terms % SIZE_MULTIPLE
    rows = F.pad(rows, (0, padding, 0, max(0, MIN_ROWS - count)))
    weight = F.pad(weight, (0, padding, 0, -outputs % SIZE_MULTIPLE))
    return int8_product(rows.contiguous(), weight.contiguous())[:count, :outputs]


@lru_cache
def use_int8() -> bool:
    """Whether int8 products are exact on this processor, and faster than float32 products.

    x86 processors without VNNI add pairs of products in 16 bits with saturation. The choice does
    not affect any format, since both implementations give the same integers.

    Raises:
        SettingError: the environment variable has another value than int8 or float32.
    """
    choice = os.environ.get(VARIABLE, "")
    if choice not in ("", "int8", "float32"):
        raise SettingError(
            f"the environment variable {VARIABLE} is {choice!r}: expected int8 or float32"
        )
    if choice:
        return choice == "int8"
    return _exact() and _seconds(int8_product) < _seconds(float32_product)


def _exact() -> bool:
    """Whether int8 products of extreme values are exact, in shapes that use several kernels."""
    try:
        for count, terms, outputs in ((1, 64, 48), (64, 243, 192), (300, 864, 96)):
            for first, second in ((127, 127), (-128, 127), (127, -127), (-128, -127)):
                rows = torch.full((count, terms), first, dtype=torch.int8)
                weight = torch.full((outputs, terms), second, dtype=torch.int8)
                if not (int8_product(rows, weight) == terms * first * second).all():
                    return False
    except RuntimeError:  # this build of PyTorch has no int8 product
        return False
    return True


def _seconds(implementation: Callable[[Tensor, Tensor], Tensor]) -> float:
    """The minimum time of a product of typical size."""
    rows = torch.ones(512, 192, dtype=torch.int8)
    weight = torch.ones(192, 192, dtype=torch.int8)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        implementation(rows, weight)
        times.append(time.perf_counter() - start)
    return min(times)

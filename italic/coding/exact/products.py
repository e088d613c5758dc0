"""Products of int8 matrices, as integers where the processor does these right and sooner."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from italic.errors import SettingError

WAY = "ITALIC_PRODUCTS"  # environment variable: "int8" or "float32" in the place of the probe
MULTIPLE = 8  # CUDA's integer products want rows of weights and columns in multiples of this ...
FEWEST = 17  # ... and so many rows at least


def product(rows: Tensor, weight: Tensor) -> Tensor:
    """rows · weightᵀ, exact while every sum stays below 2^24.

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
    return by_integers(rows, weight) if integers_are_right() else by_floats(rows, weight)


def by_integers(rows: Tensor, weight: Tensor) -> Tensor:
    """`product` in int32."""
    return torch._int_mm(rows, weight.t())


def by_floats(rows: Tensor, weight: Tensor) -> Tensor:
    """`product` in float32; bfloat16 or TF32 inside give the same, autocasting does not."""
    return F.linear(rows.float(), weight.float())


def _on_cuda(rows: Tensor, weight: Tensor) -> Tensor:
    """`product` on the integer units of a GPU; its sizes are filled up with zeros."""
    (count, terms), outputs = rows.shape, len(weight)
    more = -terms % MULTIPLE
    rows = F.pad(rows, (0, more, 0, max(0, FEWEST - count)))
    weight = F.pad(weight, (0, more, 0, -outputs % MULTIPLE))
    return by_integers(rows.contiguous(), weight.contiguous())[:count, :outputs]


@lru_cache
def integers_are_right() -> bool:
    """Whether this processor's products of int8 are exact, and faster than those of float32.

    Processors of x86 without VNNI add pairs of products in 16 bits, which saturate. The choice is
    no part of any format: both ways give the same integers.

    Raises:
        SettingError: the environment variable names no way.
    """
    way = os.environ.get(WAY, "")
    if way not in ("", "int8", "float32"):
        raise SettingError(f"the environment variable {WAY} is {way!r}: expected int8 or float32")
    return way == "int8" if way else _exact() and _seconds(by_integers) < _seconds(by_floats)


def _exact() -> bool:
    """Whether products of the largest numbers are right, in shapes that take several kernels."""
    try:
        for count, terms, outputs in ((1, 64, 48), (64, 243, 192), (300, 864, 96)):
            for first, second in ((127, 127), (-128, 127), (127, -127), (-128, -127)):
                rows = torch.full((count, terms), first, dtype=torch.int8)
                weight = torch.full((outputs, terms), second, dtype=torch.int8)
                if not (by_integers(rows, weight) == terms * first * second).all():
                    return False
    except RuntimeError:  # this build of PyTorch has no such product
        return False
    return True


def _seconds(way: Callable[[Tensor, Tensor], Tensor]) -> float:
    """The least time of a product of usual size."""
    rows = torch.ones(512, 192, dtype=torch.int8)
    weight = torch.ones(192, 192, dtype=torch.int8)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        way(rows, weight)
        times.append(time.perf_counter() - start)
    return min(times)

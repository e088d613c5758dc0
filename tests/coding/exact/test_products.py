"""Exact products of int8 matrices."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from italic.coding.exact import products


def test_products_of_rows_that_overlap_in_memory(ways: list[Callable[[], None]]) -> None:
    random = torch.Generator().manual_seed(0)
    memory = torch.randint(-128, 128, (27 * 12,), generator=random).to(torch.int8)
    rows = memory.as_strided((25, 36), (12, 1))  # the patches of 3×3 pixels of one column
    weight = torch.randint(-127, 128, (64, 36), generator=random).to(torch.int8)
    for choose in ways:
        choose()
        assert (products.product(rows, weight) == rows.long() @ weight.long().t()).all()


def test_the_probe_finds_saturation(monkeypatch: pytest.MonkeyPatch) -> None:
    def saturating(rows: Tensor, weight: Tensor) -> Tensor:
        pairs = (rows[:, None].int() + 128) * weight.int()  # as unsigned, as oneDNN does
        pairs = F.pad(pairs, (0, pairs.shape[-1] % 2)).unflatten(-1, (-1, 2)).sum(-1)
        return pairs.clamp(-(2**15), 2**15 - 1).sum(-1).int() - 128 * weight.int().sum(1)

    def absent(rows: Tensor, weight: Tensor) -> Tensor:
        raise RuntimeError("not implemented")

    for way in (saturating, absent):
        monkeypatch.setattr(products, "int8_product", way)
        assert not products._exact()


def test_unknown_ways_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ITALIC_PRODUCTS", "int4")
    with pytest.raises(ValueError, match="expected int8 or float32"):
        products.use_int8.__wrapped__()

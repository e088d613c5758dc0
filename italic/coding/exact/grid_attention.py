"""Attention in the exact scheme "grids"."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from italic.coding.exact.grid_layers import are_powers_of_two, quantise
from italic.coding.exact.layers import ACCUMULATOR_LIMIT, ExactAttention, InexactError
from italic.models.layers import NonLocalBlock

ATTENTION_LIMIT = 511  # largest absolute value of quantised queries, keys and values
EXPONENTIAL_UNIT = 2.0**-6  # step of the exponential's argument in its table
EXPONENTIAL_TOP = 2**14  # exp(0) in its table
ATTENTION_TOTAL = 2**15  # sum of the quantised attention weights of a position, approximately


def exponential_table() -> Tensor:
    """2^14 · exp(−i/64), rounded down, up to the first 0: float32 (623,)."""
    length = math.ceil(math.log(EXPONENTIAL_TOP) / EXPONENTIAL_UNIT) + 1
    argument = torch.arange(length, dtype=torch.float64, device="cpu") * EXPONENTIAL_UNIT
    return torch.floor(EXPONENTIAL_TOP * torch.exp(-argument)).float()


class ExactNonLocalBlock(ExactAttention):
    """Attention with quantised operands and a table of the exponential.

    Attributes:
        units: float32 (3,), powers of two: the scales of query, key and value.
        exponential: float32 (L,), 2^14 · exp(−i/64) rounded down to integers; the last entry is 0.
    """

    units: Tensor
    exponential: Tensor

    def __init__(self, block: NonLocalBlock) -> None:
        super().__init__(block.query_key_value.in_channels, block.window)
        if EXPONENTIAL_TOP * block.window**2 > ACCUMULATOR_LIMIT:
            raise InexactError(
                f"attention over windows of {block.window}×{block.window} positions is not exact: "
                "expected at most 32×32, where the side is model.attention_window / "
                "model.space_to_depth"
            )
        self.query_key_value = block.query_key_value
        self.output = block.output
        self.register_buffer("units", torch.ones(3))
        self.register_buffer("exponential", exponential_table())

    def is_exact(self) -> bool:
        """Whether the scales are powers of two and the table is correct."""
        return are_powers_of_two(self.units) and torch.equal(
            self.exponential.cpu(), exponential_table()
        )

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        weights = self._integer_weights(query, key)
        levels = quantise(value, self.units[2], self.value_limit)
        return (weights @ levels).mul_(self.units[2]).div_(weights.sum(-1, keepdim=True))

    def _integer_weights(self, query: Tensor, key: Tensor) -> Tensor:
        """Integer attention weights with a sum of about 2^15, so that sums of values are exact."""
        query = quantise(query, self.units[0], self.score_limit)
        key = quantise(key, self.units[1], self.score_limit)
        scores = query @ key.transpose(1, 2)
        scale = self.units[0] * self.units[1] * (1 / (math.sqrt(self.inner) * EXPONENTIAL_UNIT))
        distance = scores.amax(-1, keepdim=True).sub(scores).mul_(scale).round_()
        index = distance.clamp_(max=len(self.exponential) - 1).int()
        weight = self.exponential.index_select(0, index.flatten()).view_as(scores)
        return weight.mul_(ATTENTION_TOTAL / weight.sum(-1, keepdim=True)).round_()

    @property
    def score_limit(self) -> int:
        """Largest quantised query and key for which the sum of d products is exact."""
        return min(ATTENTION_LIMIT, math.isqrt(ACCUMULATOR_LIMIT // self.inner))

    @property
    def value_limit(self) -> int:
        """Largest quantised value with exact sums; rounding may add 1/2 to each weight."""
        return min(ATTENTION_LIMIT, ACCUMULATOR_LIMIT // (ATTENTION_TOTAL + self.window**2))

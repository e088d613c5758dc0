"""Attention in the exact scheme "int8"."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from italic.coding.exact.int8_layers import LIMIT
from italic.coding.exact.layers import ACCUMULATOR_LIMIT, ExactAttention, InexactError, are_in_range
from italic.models.layers import NonLocalBlock

EXPONENTIAL_TOP = 255  # exp(0) in the table of the exponential
EXPONENTIAL_UNIT = 2.0**-6  # step of the exponential's argument in its table


class QuantisedNonLocalBlock(ExactAttention):
    """Attention with int8 queries, keys and values, and an 8-bit table of the exponential.

    Attributes:
        steps: float32 (3,), reciprocal scales of query, key and value.
        score_scale: float32 (), scale from integer scores to steps of the table.
        value_scale: float32 (), scale of the values.
        exponential: float32 (L,), 255 · exp(−i/64) rounded to integers; the last entry is 0.
    """

    steps: Tensor
    score_scale: Tensor
    value_scale: Tensor
    exponential: Tensor

    def __init__(self, block: NonLocalBlock) -> None:
        nn.Module.__init__(self)
        self.inner, self.window = block.inner, block.window
        largest = math.isqrt((ACCUMULATOR_LIMIT - 1) // (EXPONENTIAL_TOP * LIMIT))
        if self.window > largest:
            raise InexactError(
                f"attention over windows of {self.window}×{self.window} positions is not exact: "
                f"expected at most {largest}×{largest}"
            )
        if LIMIT**2 * self.inner >= ACCUMULATOR_LIMIT:
            raise InexactError(
                f"attention with {self.inner} channels is not exact: expected fewer than "
                f"{math.ceil(ACCUMULATOR_LIMIT / LIMIT**2)}"
            )
        self.query_key_value, self.output = block.query_key_value, block.output
        device = next(block.parameters()).device
        one = torch.ones((), dtype=torch.float32, device=device)
        self.register_buffer("steps", torch.ones(3, dtype=torch.float32, device=device))
        self.register_buffer("score_scale", one.clone())
        self.register_buffer("value_scale", one.clone())
        self.register_buffer("exponential", exponential_table().to(device))

    def set_steps(self, steps: Tensor) -> None:
        """Set the reciprocal scales of query, key and value, (3,)."""
        self.steps.copy_(steps.clamp(2.0**-20, 2.0**20))
        query, key, value = self.steps.double().tolist()
        self.score_scale.fill_(1 / (query * key * math.sqrt(self.inner) * EXPONENTIAL_UNIT))
        self.value_scale.fill_(1 / value)

    def is_exact(self) -> bool:
        """Whether the table is correct and all scales are in range."""
        is_table = torch.equal(self.exponential.cpu(), exponential_table())
        return is_table and are_in_range(self.steps, self.score_scale, self.value_scale)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        weights = self._integer_weights(query, key)
        levels = _quantise(value, self.steps[2])
        return (weights @ levels).mul_(self.value_scale).div_(weights.sum(-1, keepdim=True))

    def _integer_weights(self, query: Tensor, key: Tensor) -> Tensor:
        """Unnormalised integer attention weights, 0 to 255, float32 (B, N, N)."""
        scores = _quantise(query, self.steps[0]) @ _quantise(key, self.steps[1]).transpose(1, 2)
        distance = scores.amax(-1, keepdim=True).sub(scores).mul_(self.score_scale).round_()
        index = distance.clamp_(max=len(self.exponential) - 1).int()
        return self.exponential.index_select(0, index.flatten()).view_as(scores)


def _quantise(x: Tensor, steps: Tensor) -> Tensor:
    return (x * steps).round_().clamp_(-LIMIT, LIMIT)


def exponential_table() -> Tensor:
    """255 · exp(−i/64), rounded, up to the first 0: float32 (401,)."""
    length = math.ceil(math.log(2 * EXPONENTIAL_TOP) / EXPONENTIAL_UNIT) + 1
    argument = torch.arange(length, dtype=torch.float64, device="cpu") * EXPONENTIAL_UNIT
    return (EXPONENTIAL_TOP * torch.exp(-argument)).round().float()

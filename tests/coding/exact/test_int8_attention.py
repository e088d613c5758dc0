"""Attention in the exact scheme "int8"."""

import pytest
import torch
from torch import nn

from italic.coding.exact import InexactError, calibrated, exchange_modules
from italic.coding.exact.int8_attention import QuantisedNonLocalBlock
from italic.models.layers import NonLocalBlock


def test_attention_is_near_and_its_sums_exact() -> None:
    block = NonLocalBlock(16, 16)
    torch.manual_seed(0)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    network = nn.Sequential(block)
    network.arithmetic = "int8"
    x = torch.randn(2, 16, 16, 16)
    exact = calibrated(network, lambda network: [network(x)].clear())
    attention = exact[0]
    assert isinstance(attention, QuantisedNonLocalBlock)
    query, key, value = (torch.randn(3, 256, 8) for _ in range(3))
    share = attention._integer_weights(query, key)
    assert torch.equal(share, share.round()) and share.max() == 255 and share.min() >= 0
    counts = (value * attention.steps[2]).round().clamp(-127, 127)
    sums = (share.double() @ counts.double()).float() * attention.value_scale
    assert torch.equal(attention.attend(query, key, value), sums / share.sum(-1, keepdim=True))
    error = (exact(x) - network(x)).square().mean() / (network(x) - x).square().mean()
    assert float(error) < 2e-3


def test_attention_over_large_windows_is_refused() -> None:
    network = nn.Sequential(NonLocalBlock(16, 23))
    network.arithmetic = "int8"
    with pytest.raises(InexactError, match="expected at most 22"):
        exchange_modules(network)

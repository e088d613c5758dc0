"""Layers in the exact scheme "grids"."""

import torch
from torch import nn

from italic.coding.exact import exact_arithmetic
from italic.coding.exact.grid_layers import ExactConv2d, quantise
from italic.models.rnan import RNAN


def test_convolutions_are_exact_sums_of_integers(network: tuple[str, RNAN]) -> None:
    _, exact_network = network
    torch.manual_seed(0)
    convolutions = [m for m in exact_network.modules() if isinstance(m, ExactConv2d)]
    assert len(convolutions) > 10
    for conv in convolutions[:12]:
        x = torch.randn(2, conv.in_channels, 9, 7) * 100 * conv.input_unit
        weight, bias = conv.integer_weights()
        counts = quantise(x, conv.input_unit, conv.input_limit).double()
        reference = nn.functional.conv2d(counts, weight, bias, conv.stride, conv.padding)
        with exact_arithmetic():
            assert torch.equal(conv(x).double(), reference * conv.units.double().view(1, -1, 1, 1))


def test_the_largest_inputs_stay_exact(network: tuple[str, RNAN]) -> None:
    """The worst case that the bound allows: every input at its limit with its weight's sign."""
    _, exact_network = network
    conv = exact_network.groups[0].conv
    assert isinstance(conv, ExactConv2d)
    weight, bias = conv.integer_weights()
    for channel in range(conv.out_channels):
        signs = torch.sign(weight[channel])[None]
        x = signs.float() * float(conv.input_unit) * 1e9
        with exact_arithmetic():
            out = nn.functional.conv2d(
                quantise(x, conv.input_unit, conv.input_limit), conv.weight, conv.bias
            )
        expected = conv.input_limit * weight[channel].abs().sum() + bias[channel]
        assert float(out[0, channel, 0, 0] / conv.units[channel]) == float(expected)

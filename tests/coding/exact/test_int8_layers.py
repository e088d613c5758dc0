"""Layers in the exact scheme "int8"."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from italic.coding.exact.int8_layers import (
    QuantisedIntegerLinear,
    QuantisedLinear,
    QuantisedResidualBlock,
)
from italic.models.layers import FineLinear, IntegerLinear, ResidualBlock
from tests.coding.exact.int8_networks import LEAK, Rows, random_layer, reference


@pytest.mark.parametrize("zero", [0, 17, 128, 255])
@pytest.mark.parametrize("rows", [0, 1, 7, 64, 2100])
@pytest.mark.parametrize("widths", [(3, 5), (75, 32), (243, 96)])
def test_linear_layers(
    ways: list[Callable[[], None]], widths: tuple[int, int], rows: int, zero: int
) -> None:
    layer = random_layer(nn.Linear(*widths), zero)
    x = torch.randn(rows, widths[0], generator=torch.Generator().manual_seed(1)) * 4
    expected = reference(layer, x, F.linear)
    for choose in ways:
        choose()
        assert torch.equal(layer(x), expected)
        assert torch.equal(layer(x[None]), expected[None])
        assert torch.equal(layer(layer.quantise_input(x)), expected)


@pytest.mark.parametrize("rows", [0, 1, 64, 2100])
@pytest.mark.parametrize("size", [1e-3, 4, 1e6])
def test_fine_layers_have_inputs_of_16_bits(
    ways: list[Callable[[], None]], rows: int, size: float
) -> None:
    layer = random_layer(FineLinear(75, 32), 128)
    x = torch.randn(rows, 75, generator=torch.Generator().manual_seed(1)) * size
    levels = (x * layer.steps).clamp(-32639, 32639).round().double()
    # float64 holds the sum exactly; it is rounded once to float32.
    sums = F.linear(levels, layer.weight.double()) + layer.bias
    for choose in ways:
        choose()
        assert torch.equal(layer(x), sums.float() * layer.scale)
        assert torch.equal(layer(x[None]), layer(x)[None])


@pytest.mark.parametrize("rows", [0, 1, 64, 2100])
def test_layers_of_integers_have_weights_of_16_bits(
    ways: list[Callable[[], None]], rows: int
) -> None:
    layer = QuantisedIntegerLinear(IntegerLinear(246, 32, 1 / 16))
    random = torch.Generator().manual_seed(0)
    layer.weight.copy_(torch.randint(-32639, 32640, (32, 246), generator=random))
    layer.bias.copy_(torch.randint(-(2**20), 2**20, (32,), generator=random))
    layer.scale.copy_(torch.rand(32, generator=random) * 1e-6 + 1e-9)
    assert layer.is_exact()
    x = torch.randint(-128, 128, (rows, 246), generator=random).to(torch.int8)
    sums = F.linear(x.double(), layer.weight.double()) + layer.bias
    for choose in ways:
        choose()
        assert torch.equal(layer(x), sums.float() * layer.scale)
    layer.bias[3] = 2**24 - 1
    assert not layer.is_exact()


@pytest.mark.parametrize("kind", [Rows, lambda features: ResidualBlock(features, LEAK)])
def test_residual_blocks_do_what_their_layers_do(
    ways: list[Callable[[], None]], kind: Callable[[int], nn.Module]
) -> None:
    block = QuantisedResidualBlock(kind(32))
    block.first = random_layer(block.first, 120, 1)
    block.second = random_layer(block.second, 11, 2)
    shape = (1500, 32) if isinstance(block.first, QuantisedLinear) else (2, 32, 9, 30)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    expected = x + block.second(F.leaky_relu(block.first(x), LEAK))
    for choose in ways:
        choose()
        assert torch.equal(block(x), expected)


def test_largest_inputs_stay_exact(ways: list[Callable[[], None]]) -> None:
    """The worst case that the bound allows, every input at its limit with its weight's sign."""
    layer = QuantisedLinear(nn.Linear(1030, 3))
    layer.weight.copy_(torch.tensor([127, -127, 0])[:, None].expand(3, 1030))
    room = 2**24 - 1 - 128 * 127 * 1030
    layer.bias.copy_(torch.tensor([-room, room, 2**24 - 1]))
    assert layer.is_exact() and int(layer.accumulator_bound().max()) == 2**24 - 1
    for choose in ways:
        choose()
        sums = layer(torch.full((2, 1030), -128, dtype=torch.int8))
        assert sums[1].tolist() == [1 - 2**24, 2**24 - 1, 2**24 - 1]


def test_weights_whose_sums_would_not_fit_get_coarser_grids() -> None:
    layer = QuantisedLinear(nn.Linear(3000, 2))
    folded = layer.folded(torch.full((2, 3000), 0.5))
    layer.set_weights(folded, torch.zeros(2), torch.full((2,), 0.5 / 127))
    assert layer.is_exact() and int(layer.weight[0, 0]) < 50
    torch.testing.assert_close(layer.floating()[0], torch.full((2, 3000), 0.5), rtol=0.02, atol=0)

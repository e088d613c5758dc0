"""What both exact schemes share: the supported layers, and the tables of functions."""

from decimal import Context, Decimal

import pytest
from torch import nn

from italic.coding.exact import (
    InexactError,
    check,
    check_layers,
    exchange_modules,
    grid_attention,
    int8_attention,
    layers,
)
from tests.coding.exact.int8_networks import Predictor


class OwnLinear(nn.Linear):
    """A user-defined layer."""


@pytest.mark.parametrize("layer", [OwnLinear(12, 12), nn.LayerNorm(12), nn.Bilinear(2, 2, 2)])
def test_layers_that_are_not_exact_are_refused(layer: nn.Module) -> None:
    network = Predictor()
    network.exit = nn.Sequential(network.exit, layer)
    with pytest.raises(InexactError, match=r"exit\.1"):
        check_layers(network)
    with pytest.raises(InexactError, match=r"exit\.1"):
        check(exchange_modules(network))


def test_unknown_schemes_are_refused() -> None:
    network = Predictor()
    network.arithmetic = "int4"
    with pytest.raises(InexactError, match="expected one of grids, int8"):
        exchange_modules(network)


def test_no_entry_of_a_table_is_near_a_rounding_boundary() -> None:
    """The functions of all libraries then give the same tables."""
    context = Context(prec=40)

    def exp(x: float) -> Decimal:
        return context.exp(Decimal(x))

    tables = [
        # Unrounded value, table entry, and the offset before rounding down.
        ([255 * exp(-i / 64) for i in range(401)], int8_attention.exponential_table(), "0.5"),
        ([2**14 * exp(-i / 64) for i in range(623)], grid_attention.exponential_table(), "0"),
        (
            [256 / (1 + exp(-i / 128)) for i in range(-1024, 1025)],
            256 * layers.sigmoid_table(),
            "0.5",
        ),
    ]
    for numbers, table, half in tables:
        assert len(numbers) == len(table)
        for number, entry in zip(numbers, table.tolist(), strict=True):
            if number == 2**14:  # exp(0), exactly
                assert entry == number
                continue
            number += Decimal(half)
            assert int(number) == entry and abs(number - round(number)) > Decimal("1e-6")

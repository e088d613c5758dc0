"""Convolutions in the exact scheme "int8"."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.coding.exact.int8_networks import random_layer, reference


@pytest.mark.parametrize("zero", [0, 100, 255])
@pytest.mark.parametrize("stride", [1, 2, (2, 1)])
@pytest.mark.parametrize(("kernel", "padding"), [(1, 0), (3, 1), ((3, 2), (0, 1)), (3, 2)])
@pytest.mark.parametrize(
    "shape", [(1, 5, 4, 3), (3, 8, 17, 40), (1, 4, 9, 700), (1, 12, 33, 1), (1, 12, 40, 2)]
)
def test_convolutions(
    ways: list[Callable[[], None]],
    shape: tuple[int, ...],
    kernel: object,
    padding: object,
    stride: object,
    zero: int,
) -> None:
    conv = nn.Conv2d(shape[1], 6, kernel, stride, padding)  # type: ignore[arg-type]
    layer = random_layer(conv, zero)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 4
    expected = reference(layer, x, lambda x, w: F.conv2d(x, w, None, conv.stride, conv.padding))  # type: ignore[arg-type]
    for choose in ways:
        choose()
        assert torch.equal(layer(x), expected)
        assert torch.equal(layer(x.to(memory_format=torch.channels_last)), expected)


def test_transposed_convolutions(ways: list[Callable[[], None]]) -> None:
    layer = random_layer(nn.ConvTranspose2d(5, 6, (2, 3), (2, 3)), 128)
    x = torch.randn(2, 5, 7, 4, generator=torch.Generator().manual_seed(1)) * 4
    expected = reference(layer, x, lambda x, w: F.conv_transpose2d(x, w, None, (2, 3)))
    for choose in ways:
        choose()
        assert torch.equal(layer(x), expected)

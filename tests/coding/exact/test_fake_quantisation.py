"""Fake quantisation: the same rounding as the exact network, straight-through gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from italic.coding.exact import kernels
from italic.coding.exact.fake_quantisation import FakeQuantisation
from italic.coding.exact.int8_calibration import InputStatistics, channels_last


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (nn.Linear(6, 4), (50, 6)),
        (nn.Conv2d(6, 4, 3, padding=1), (2, 6, 5, 4)),
        (nn.ConvTranspose2d(6, 4, 2, stride=2), (2, 6, 5, 4)),
    ],
)
def test_inputs_are_rounded_as_in_the_exact_network(
    layer: nn.Module, size: tuple[int, ...]
) -> None:
    x = torch.randn(size, generator=torch.Generator().manual_seed(0))
    x = x * torch.tensor([1.0, 2, 5, 1, 1, 30]).view(-1, *[1] * (x.ndim == 4) * 2)
    network = nn.Sequential(layer)
    quantisation = FakeQuantisation(network)
    quantisation.observe()
    assert torch.equal(network(x), layer.forward(x))  # an observed batch is not quantised
    quantisation.calibrate()
    statistics = InputStatistics()
    statistics.add(channels_last(layer, x))
    steps, zero = statistics.grid(symmetric=False)
    rows = channels_last(layer, x).contiguous()
    levels = kernels.quantise(rows, steps, torch.tensor(zero, dtype=torch.int32))
    expected = (levels.float() + kernels.ZERO_LEVEL - zero) / steps
    seen: list[Tensor] = []
    layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    network(x)
    torch.testing.assert_close(channels_last(layer, seen[0]), expected)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layer", [nn.Linear(3, 2), nn.Conv2d(3, 2, 3, padding=1)])
def test_the_gradient_passes_the_rounding_but_not_the_clipping(
    layer: nn.Module, precision: torch.dtype
) -> None:
    """Clipped inputs would grow without an effect on the loss."""
    shape = (40, 3) if isinstance(layer, nn.Linear) else (2, 3, 5, 4)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    quantisation = FakeQuantisation(nn.Sequential(layer))
    quantisation.observe()
    layer(x)
    quantisation.calibrate()
    x, outside = x / 2, torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.2
    x = torch.where(outside, 1000 * x.sign(), x).requires_grad_()
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        layer(x).float().square().sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad == 0, outside)


def test_layers_without_a_scale_stay_in_floating_point() -> None:
    layer = nn.Linear(3, 2)
    x = torch.randn(7, 3)
    expected = layer(x)
    quantisation = FakeQuantisation(nn.Sequential(layer))
    assert torch.equal(layer(x), expected)
    quantisation.observe()
    layer(torch.zeros(0, 3))
    quantisation.calibrate()
    assert torch.equal(layer(x), expected)
    quantisation.observe()
    layer(x)
    quantisation.calibrate()
    assert not torch.equal(layer(x), expected)
    quantisation.remove()
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_rounds_as_pytorch_does(dtype: torch.dtype) -> None:
    """To levels, and then to the type of the result; NaN stays NaN."""
    generator = torch.Generator().manual_seed(0)
    x = (20 * torch.randn(500, 7, generator=generator)).to(dtype)
    x[3, 4] = float("nan")
    steps = 5 * torch.rand(7, generator=generator) + 0.1
    expected = (x.float() * steps).round().clamp(-100, 155) / steps
    for result in (torch.float32, torch.bfloat16, torch.float16):
        rounded = kernels.round_to_levels(x, steps, 100, result)
        torch.testing.assert_close(rounded, expected.to(result), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("zero", [0, 30, 100, 200, 255])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_finds_the_outermost_levels_as_pytorch_does(
    dtype: torch.dtype, zero: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    steps = 5 * torch.rand(300, generator=generator) + 0.1
    x = torch.randint(-300, 301, (500, 300), generator=generator) / steps
    rounded = kernels.round_to_levels(x, steps, zero, dtype)
    gradient = torch.randn(500, 300, generator=generator).to(dtype)
    passed = kernels.without_outermost(gradient, rounded, steps, zero)
    levels = (x * steps).round()
    assert not passed[(levels <= -zero) | (levels >= 255 - zero)].any()
    inner = (levels > 3 - zero) & (levels < 252 - zero)
    assert torch.equal(passed[inner], gradient[inner])
    reference = kernels.without_outermost(gradient.double(), rounded, steps, zero)
    assert torch.equal(passed.double(), reference)


def test_inputs_that_are_not_finite_leave_the_scales_as_they_are() -> None:
    layer = nn.Linear(3, 2)
    quantisation = FakeQuantisation(nn.Sequential(layer))
    for number in (1.0, torch.inf, torch.nan):
        quantisation.observe()
        layer(torch.full((4, 3), number))
        quantisation.calibrate()
        assert quantisation.grids[layer][0].isfinite().all()


def test_with_autocast_the_layers_read_the_type_of_their_products() -> None:
    layer = nn.Linear(3, 2)
    x = torch.randn(7, 3, requires_grad=True)
    quantisation = FakeQuantisation(nn.Sequential(layer))
    quantisation.observe()
    layer(x)
    quantisation.calibrate()
    seen: list[torch.dtype] = []
    layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        layer(x).float().sum().backward()
    assert seen == [torch.bfloat16] and x.grad is not None and x.grad.dtype == torch.float32


def test_several_processes_share_the_scales_of_the_first_one() -> None:
    sent: list[object] = []
    outputs = []
    for factor in (1.0, 3.0):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        quantisation = FakeQuantisation(network)
        quantisation.observe()
        network(factor * torch.randn(20, 4))
        quantisation.calibrate()
        x = torch.linspace(-1, 1, 8).view(2, 4)
        alone = network(x)
        quantisation.share(lambda grids: sent.append(grids) or sent[0])
        outputs.append((alone, network(x)))
    (first, first_shared), (second, second_shared) = outputs
    assert torch.equal(first, first_shared) and torch.equal(first_shared, second_shared)
    assert not torch.equal(second, second_shared)

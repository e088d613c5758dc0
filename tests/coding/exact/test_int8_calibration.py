"""Calibration for int8 arithmetic: scales, errors, and networks that can't be quantised."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from italic.coding.exact import InexactError, calibrated, make_exact
from tests.coding.exact.int8_networks import Predictor, Rows, calibrate, inputs, randomised


def test_inputs_of_8_bits_stay_as_they_are(predictor: nn.Module) -> None:
    assert (predictor.entry.steps == 16).all() and int(predictor.entry.zero) == 128
    assert (predictor.known_entry.steps == 1).all()
    assert (predictor.context[0].steps == 64).all()


def test_a_channel_of_large_values_does_not_coarsen_the_others() -> None:
    """With one scale for all channels, the small ones would be rounded to a few levels."""
    random = torch.Generator().manual_seed(0)
    sizes = torch.ones(32)
    sizes[5] = 300.0
    x = torch.randn(500, 32, generator=random) * sizes
    network = nn.Sequential(nn.Linear(32, 16))
    network.arithmetic = "int8"
    with torch.no_grad():
        network[0].weight.div_(sizes)
    exact = calibrated(network, lambda module: module(x))
    error = (exact(x) - network(x)).square().mean() / network(x).var()
    assert error < 0.02


def test_leaky_activations_get_nearly_all_levels(predictor: nn.Module) -> None:
    for block in predictor.body:
        assert 3 <= int(block.second.zero) <= 40


@torch.no_grad()
def test_calibration_errs_little(predictor: nn.Module) -> None:
    network = randomised(Predictor())
    expected = network(*inputs(9))
    size = expected.var()
    for exact in (predictor, make_exact(network, calibrate)):
        assert (exact(*inputs(9)) - expected).square().mean() < 3e-3 * size


@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize(("value", "message"), [(torch.inf, "not finite"), (1e35, "too large")])
def test_infinite_and_huge_weights_are_refused(name: str, value: float, message: str) -> None:
    network = randomised(Predictor())
    with torch.no_grad():
        getattr(network.exit, name).view(-1)[0] = value
    with pytest.raises(InexactError, match=message):
        calibrated(network, calibrate)


def test_layers_that_calibration_never_applies_are_refused() -> None:
    network = Predictor()
    network.more = nn.Linear(2, 2)
    with pytest.raises(InexactError, match="more was never applied"):
        calibrated(network, calibrate)


class Louder(Rows):
    """Looks like a residual block, but is not one."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 4 * self.second(F.leaky_relu(self.first(x), self.leak))


def test_modules_that_only_look_like_residual_blocks_are_refused() -> None:
    network = Predictor()
    network.body.append(Louder(32))
    with pytest.raises(InexactError, match=r"block body\.2 has the submodules first and second"):
        calibrated(randomised(network), calibrate)

"""Calibration for grids: cross-layer equalisation and optimised rounding."""

import numpy as np
import pytest
import torch
from torch import nn

from italic.coding.base_codes.base import NoBase
from italic.coding.exact import (
    InexactError,
    calibrated,
    check,
    grid_calibration,
    make_exact,
    silent_blocks,
)
from italic.coding.exact.grid_calibration import equalise
from italic.coding.exact.grid_layers import ExactConvolution
from italic.coding.streams.codec import Codec
from italic.models.layers import ResidualBlock
from italic.models.rnan import RNAN
from italic.schedule import Schedule
from tests.coding.exact.grid_networks import OPTIONS, pictures, weights


def calibrate(network: nn.Module) -> None:
    Codec(network, NoBase(), Schedule(), 4).encode(pictures(6))


@torch.no_grad()
def features(network: RNAN) -> torch.Tensor:
    image = torch.from_numpy(pictures(6)).permute(0, 3, 1, 2).float()
    known = torch.zeros(6, 1, 16, 16)
    known[..., ::2, ::2] = 1  # as before the second step of `calibrate`
    _, last = network(image, torch.full_like(image, 128), known)
    return last  # before the head, whose rounding error is larger


@pytest.fixture(scope="module", params=list(OPTIONS))
def network(request: pytest.FixtureRequest) -> RNAN:
    """A network with channels of very different ranges, as in trained networks."""
    network = weights(RNAN(**OPTIONS[request.param]))
    with torch.no_grad():
        for block in network.modules():
            if isinstance(block, ResidualBlock):
                scale = torch.logspace(-2, 2, block.first.out_channels, base=2)
                block.first.weight.mul_(scale[:, None, None, None])
                block.first.bias.mul_(scale)
                block.second.weight.div_(scale[:, None, None] * 2)
    return network


def test_rounding_costs_less(network: RNAN) -> None:
    expected = features(network)
    exact = calibrated(network, calibrate)
    check(exact)
    error = (features(exact) - expected).square().mean()
    of_nearest = (features(make_exact(network, calibrate)) - expected).square().mean()
    assert error < 0.7 * of_nearest


def test_an_equalised_network_computes_the_same(network: RNAN) -> None:
    equalised = equalise(network, calibrate)
    torch.testing.assert_close(features(equalised), features(network), rtol=1e-3, atol=1e-3)
    ranges: dict[nn.Module, torch.Tensor] = {}

    def watch(conv: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        largest = inputs[0].abs().amax((0, 2, 3))
        ranges[conv] = torch.maximum(largest, ranges.get(conv, largest))

    for block in equalised.modules():
        if isinstance(block, ResidualBlock):
            block.second.register_forward_pre_hook(watch)
    calibrate(equalised)
    for reach in ranges.values():
        top = np.log2(float(reach.max()))
        assert 0 < np.ceil(top) - top < 0.03


def test_silent_blocks_stay_silent() -> None:
    network = weights(RNAN(**{**OPTIONS["small"], "groups": 1}))
    nn.init.constant_(network.groups[0].entry.first.bias, -1000)
    assert silent_blocks(calibrated(network, calibrate)) == ["groups.0.entry"]


def test_infinite_weights_are_refused() -> None:
    network = weights(RNAN(**OPTIONS["small"]))
    with torch.no_grad():
        network.exit.weight[0, 0, 0, 0] = torch.inf
    with pytest.raises(InexactError, match="not finite"):
        calibrated(network, lambda untouched: [features(untouched)].clear())


def test_weights_whose_sums_would_not_fit_are_rounded_to_the_nearest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = weights(RNAN(**OPTIONS["small"]))
    monkeypatch.setattr(
        grid_calibration, "round_compensated", lambda wanted, *_: 2 * wanted.abs() + 2**20
    )
    exact = calibrated(network, calibrate)
    convolutions = [m for m in exact.modules() if isinstance(m, ExactConvolution)]
    assert convolutions and all(conv.is_exact() for conv in convolutions)

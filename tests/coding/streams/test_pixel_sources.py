"""Integer parameters of mixtures."""

import numpy as np
import pytest
import torch

from italic.coding.streams.entropy import StreamError, bits
from italic.coding.streams.pixel_sources import flat_pixels, integer_parameters
from italic.errors import SettingError
from italic.models.likelihood import Mixture


def test_masked_images_are_refused() -> None:
    images = np.zeros((2, 4, 5, 3), np.uint8)
    assert type(flat_pixels(np.ma.array(images))) is np.ndarray
    with pytest.raises(ValueError, match="masked samples"):
        flat_pixels(np.ma.array(images, mask=images == 0))


def test_integer_parameters_cost_what_the_floats_say() -> None:
    torch.manual_seed(0)
    shape = (1, 200, 3, 5)
    mixture = Mixture(
        torch.randn(shape),
        60 + 120 * torch.rand(shape),
        torch.randn(shape) + 2,
        0.5 * torch.randn(shape),
    )
    pixels = torch.randint(60, 180, (1, 200, 3)).float()
    (parameters,) = integer_parameters(mixture)
    cost = bits(parameters, pixels[0].numpy().astype(np.uint8)).sum()
    assert cost == pytest.approx(mixture.bits(pixels).sum().item(), rel=2e-3)


def test_a_network_gone_wrong_is_refused() -> None:
    shape = (1, 1, 3, 2)
    fields = [torch.zeros(shape) for _ in range(4)]
    fields[1][...] = torch.nan
    with pytest.raises(StreamError, match="not finite"):
        integer_parameters(Mixture(*fields))


def test_a_likelihood_without_a_coder_is_refused() -> None:
    class Own(Mixture):
        pass

    with pytest.raises(SettingError, match="the likelihood Own has no coder"):
        integer_parameters(Own(*(torch.zeros(1, 1, 3, 2) for _ in range(4))))

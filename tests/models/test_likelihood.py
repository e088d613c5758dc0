import math
from statistics import NormalDist

import pytest
import torch

from italic.errors import SettingError
from italic.models import likelihood
from italic.models.likelihood import (
    GaussianMixture,
    Mixture,
    MixtureHead,
    bits_of_raw,
    likelihood_of,
)


def random_mixture(pixels: int, components: int, kind: type[Mixture] = Mixture) -> Mixture:
    shape = (pixels, 3, components)
    return kind(
        torch.randn(shape),
        256 * torch.rand(shape),
        torch.randn(shape) + 1.5,
        0.5 * torch.randn(shape),
    )


@pytest.mark.parametrize("kind", [Mixture, GaussianMixture])
@pytest.mark.parametrize("components", [1, 5])
def test_probabilities_of_all_values_sum_to_one(components: int, kind: type[Mixture]) -> None:
    mixture = random_mixture(4, components, kind)
    given = torch.randint(0, 256, (4, 3)).float()
    for colour in range(3):
        total = torch.zeros(4)
        for value in range(256):
            pixels = given.clone()
            pixels[:, colour] = value
            total += 2 ** -mixture.bits(pixels)[:, colour]
        assert torch.allclose(total, torch.ones(4), atol=1e-4)


def test_one_component_in_closed_form() -> None:
    shape = (1, 3, 1)
    mixture = Mixture(
        torch.zeros(shape),
        torch.tensor([100.0, 90.0, 80.0]).view(shape),
        torch.full(shape, 2.0).log(),
        torch.tensor([1.0, 0.5, -0.25]).view(shape),
    )
    pixels = torch.tensor([[138.0, 100.0, 0.0]])
    red, green = 138 - 128, 100 - 128
    means = torch.tensor([100.0, 90 + red, 80 + 0.5 * red - 0.25 * green])
    cdf = torch.sigmoid((pixels + 0.5 - means) / 2), torch.sigmoid((pixels - 0.5 - means) / 2)
    expected = cdf[0] - cdf[1]
    expected[0, 2] = cdf[0][0, 2]  # the interval of 0 is unbounded below
    assert torch.allclose(2 ** -mixture.bits(pixels), expected, rtol=1e-4)


def same_for_all(mixture: Mixture, pixels: torch.Tensor) -> torch.Tensor:
    """Bits of many pixels under the mixture of one pixel."""
    fields = (field.expand(len(pixels), -1, -1) for field in mixture)
    return type(mixture)(*fields).bits(pixels)


def test_the_expectation_is_that_of_all_values_with_their_probabilities() -> None:
    """The expectation of narrow mixtures around mid-grey, summed over 48³ colours."""
    torch.manual_seed(0)
    mixture = random_mixture(1, 2)
    mixture = mixture._replace(
        means=128 + torch.randn(1, 3, 2) * 2, log_scales=torch.full((1, 3, 2), -0.5)
    )
    values = torch.arange(104.0, 152.0)
    pixels = torch.cartesian_prod(values, values, values)
    probabilities = 2 ** -same_for_all(mixture, pixels).sum(-1)
    assert probabilities.sum() == pytest.approx(1, abs=1e-4)
    expected = (probabilities[:, None] * pixels).sum(0)
    assert torch.allclose(mixture.expectation()[0], expected, atol=5e-3)


@pytest.mark.parametrize("kind", [Mixture, GaussianMixture])
@pytest.mark.parametrize("mean", [-300.0, -5.0, 3.0, 250.0, 256.0, 900.0])
def test_at_the_ends_the_tails_count_as_0_and_255(mean: float, kind: type[Mixture]) -> None:
    mixture = random_mixture(1, 3, kind)._replace(means=mean + torch.randn(1, 3, 3))
    values = torch.arange(256.0)[:, None].expand(-1, 3)
    probabilities = 2 ** -same_for_all(mixture, values)[:, 0]
    expected = (probabilities * values[:, 0]).sum()
    assert mixture.expectation()[0, 0] == pytest.approx(expected.item(), abs=0.02)
    assert (mixture.expectation() >= 0).all() and (mixture.expectation() <= 255).all()


@pytest.mark.parametrize("kind", [Mixture, GaussianMixture])
def test_far_and_narrow_stays_finite_with_gradients(kind: type[Mixture]) -> None:
    shape = (2, 3, 4)
    fields = [
        torch.zeros(shape),
        torch.full(shape, 5000.0),
        torch.full(shape, -3.0),
        torch.zeros(shape),
    ]
    fields = [field.requires_grad_() for field in fields]
    bits = kind(*fields).bits(torch.tensor([[0.0, 128.0, 255.0], [255.0, 0.0, 1.0]]))
    bits.sum().backward()
    assert torch.isfinite(bits).all()
    assert all(torch.isfinite(field.grad).all() for field in fields if field.grad is not None)


def test_a_fresh_head_follows_the_base_image_and_the_colours_before() -> None:
    head = MixtureHead(5)
    base = torch.rand(1, 3, 2, 2) * 255
    mixture = head(torch.zeros(1, head.channels, 2, 2), base)
    pixels = (base + torch.tensor([7.0, -3.0, 0.0])[:, None, None]).permute(0, 2, 3, 1)
    means = mixture.conditional_means(pixels).mean(-1)
    expected = base.permute(0, 2, 3, 1) + torch.tensor([0.0, 7.0, -3.0])
    assert torch.allclose(means, expected, atol=1e-3)


def rows(components: int, spread: float, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Raw outputs (some are clamped), base image, pixels (many are 0 or 255), weights."""
    torch.manual_seed(components)
    n = 700  # not a multiple of the block size
    raw = torch.randn(n, 4, 3, components) * torch.tensor([2, spread, 3, 8])[:, None, None]
    base = 255 * torch.rand(n, 3)
    pixels = (base + 20 * torch.randn(n, 3)).round().clamp(0, 255)
    pixels[:200] = torch.tensor([0.0, 255.0, 1.0, 254.0, 128.0])[torch.randint(0, 5, (200, 3))]
    raw[200:300, 1] = 0  # exactly on the mean, for an odd number of components above 1
    pixels[200:250] = base[200:250] = base[200:250].round()
    raw = raw.flatten(1).to(dtype)
    for end in (12, -16, -20):  # coefficients of ±4, where PyTorch versions differ
        raw[raw == end] = 11
    return raw, base, pixels, torch.randn(n, 3)


def in_float64(
    raw: torch.Tensor,
    base: torch.Tensor,
    pixels: torch.Tensor,
    weights: torch.Tensor,
    likelihood: str = "logistic",
) -> tuple[torch.Tensor, torch.Tensor]:
    raw = raw.double().requires_grad_()
    head = MixtureHead(raw.shape[1] // 12, likelihood)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        bits = head(raw, base.double()).bits(pixels.double())
    (gradient,) = torch.autograd.grad((bits * weights).sum(), raw)
    return bits.detach(), gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "spread", [0.3, 100.0]
)  # distances from the pixel: small, or up to thousands of grey levels
@pytest.mark.parametrize("components", [1, 5, 10])
@pytest.mark.parametrize("kernel", [True, False])
def test_bits_of_raw_are_those_of_the_mixture(
    kernel: bool,
    components: int,
    spread: float,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(likelihood, "_has_kernel", lambda _: kernel)
    raw, base, pixels, weights = rows(components, spread, dtype)
    expected, expected_gradient = in_float64(raw, base, pixels, weights)
    raw.requires_grad_()
    bits = bits_of_raw(raw, base, pixels)
    (gradient,) = torch.autograd.grad((bits * weights).sum(), raw)
    assert bits.dtype == torch.float32 and gradient.dtype == dtype
    # The kernel is more accurate than the formula, which takes a logarithm per component.
    accuracy = {"rtol": 1e-6, "atol": 3e-4 if kernel else 1e-3}
    if components == 1:  # the distance determines the bits, which reach thousands
        accuracy = {"rtol": 1e-5, "atol": 1e-3}
    assert torch.allclose(bits.double(), expected, **accuracy)
    rtol = 1e-3 if dtype == torch.float32 else 1e-2
    assert torch.allclose(gradient.double(), expected_gradient, rtol=rtol, atol=2e-3)
    _, _, log_scales, coefficients = raw.detach().float().unflatten(1, (4, 3, -1)).unbind(1)
    start = torch.tensor([1.0, 0.0, 1.0])[:, None]
    clamped = torch.stack(
        [(2.3 + log_scales - 1.25).abs() > 4.25, (start + 0.25 * coefficients).abs() > 4], dim=1
    )
    assert clamped.any() and (gradient.unflatten(1, (4, 3, -1))[:, 2:][clamped] == 0).all()


def test_bits_of_raw_go_without_a_gradient_and_show_nan() -> None:
    raw, base, pixels, _ = rows(5, 0.3, torch.float32)
    with torch.inference_mode():
        bits = bits_of_raw(raw, base, pixels.byte())
    raw[3, 7] = torch.nan  # a raw output of red
    of_nan = bits_of_raw(raw.requires_grad_(), base, pixels)
    assert of_nan.isnan().nonzero().tolist() == [[3, 1]]
    assert torch.equal(of_nan.nan_to_num(0)[4:], bits[4:])


def test_a_gaussian_in_closed_form() -> None:
    shape = (1, 3, 1)
    zeros = torch.zeros(shape)
    mixture = GaussianMixture(zeros, zeros + 100, zeros + math.log(2), zeros)
    pixels = torch.tensor([[101.0, 97.0, 0.0]])
    normal = NormalDist(100, 2)
    expected = [normal.cdf(v + 0.5) - normal.cdf(v - 0.5) for v in (101, 97)]
    found = 2 ** -mixture.bits(pixels)[0, :2]
    assert found.tolist() == pytest.approx(expected, rel=1e-4)
    assert mixture.expectation()[0].tolist() == pytest.approx([100, 100, 100])
    assert type(mixture.at(torch.tensor([True]))) is GaussianMixture


def test_bits_of_raw_of_gaussians_are_those_of_the_mixture() -> None:
    raw, base, pixels, weights = rows(5, 0.3, torch.float32)
    expected, expected_gradient = in_float64(raw, base, pixels, weights, "gaussian")
    raw.requires_grad_()
    bits = bits_of_raw(raw, base, pixels, "gaussian")
    (gradient,) = torch.autograd.grad((bits * weights).sum(), raw)
    assert torch.allclose(bits.double(), expected, rtol=1e-4, atol=1e-3)
    assert torch.allclose(gradient.double(), expected_gradient, rtol=1e-2, atol=1e-2)


def test_a_likelihood_without_a_coder_is_named() -> None:
    class Own(Mixture):
        pass

    assert likelihood_of(random_mixture(1, 1)) == "logistic"
    assert likelihood_of(random_mixture(1, 1, GaussianMixture)) == "gaussian"
    with pytest.raises(SettingError, match="the likelihood Own has no coder"):
        likelihood_of(random_mixture(1, 1, Own))
    with pytest.raises(SettingError, match="unknown likelihood 'laplace'"):
        MixtureHead(1, "laplace")

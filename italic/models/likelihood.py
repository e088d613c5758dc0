"""Discretised mixtures: the predictive distribution of every sub-pixel."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from italic.errors import SettingError, check_range
from italic.models import mixture_kernel

MIN_LOG_SCALE, MAX_LOG_SCALE = -3.0, 5.5  # natural log of grey levels
MAX_COMPONENTS = 32  # of a mixture
CENTRE = 128.0  # grey level that the colour coefficients refer to


class Mixture(NamedTuple):
    """A mixture of K logistics for each sub-pixel, all fields float (..., 3, K).

    `logits` are log weights with an arbitrary offset, `means` are in grey levels, and `log_scales`
    are natural logarithms of scales in grey levels.

    The mean of green depends linearly on red, and the mean of blue on red and green (PixelCNN++,
    Salimans et al. 2017). Unlike in PixelCNN++, each sub-pixel has separate mixture weights.
    `coefficients` holds [red → green, red → blue, green → blue]; each is multiplied by the
    difference of the earlier colour and `CENTRE`.
    """

    logits: Tensor
    means: Tensor
    log_scales: Tensor
    coefficients: Tensor

    def at(self, index: Tensor) -> Mixture:
        """The mixtures at a boolean mask (...) with n true entries, fields (n, 3, K)."""
        return type(self)(*(field[index] for field in self))

    def conditional_means(self, pixels: Tensor) -> Tensor:
        """Means of each sub-pixel, conditional on the earlier colours of its pixel.

        Args:
            pixels: float (..., 3), grey levels 0 to 255; blue is not read.

        Returns:
            float (..., 3, K).
        """
        red, green = (pixels[..., :2, None] - CENTRE).unbind(-2)
        on_red, blue_red, blue_green = self.coefficients.unbind(-2)
        shift = (torch.zeros_like(on_red), on_red * red, blue_red * red + blue_green * green)
        return self.means + torch.stack(shift, dim=-2)

    def expectation(self) -> Tensor:
        """Expectation of each pixel before any of its colours is known, float (..., 3), 0 to 255.

        A component whose tails are moved to 0 and 255, as in `bits`, has the mean
        s·[ζ(μ/s) − ζ((μ − 255)/s)], the integral of 1 − CDF from 0 to 255; ζ is the integral of the
        CDF of a component of mean 0 and scale 1. The means of green and blue are computed from the
        expectations of the earlier colours.
        """
        fields = self.logits.softmax(dim=-1), self.means, self.log_scales.exp()
        coefficients = iter(self.coefficients.unbind(-2))
        expected: list[Tensor] = []
        for weights, means, scales in zip(*(field.unbind(-2) for field in fields), strict=True):
            for earlier in expected:
                means = means + next(coefficients) * (earlier - CENTRE)[..., None]
            inside = self._cdf_integral(means / scales)
            inside = inside - self._cdf_integral((means - 255) / scales)
            expected.append((weights * scales * inside).sum(-1))
        return torch.stack(expected, dim=-1).clamp(0, 255)  # rounding may exceed the range

    def bits(self, pixels: Tensor) -> Tensor:
        """Bits of each sub-pixel: −log2 Σ_k w_k [C((v + ½ − μ_k)/s_k) − C((v − ½ − μ_k)/s_k)].

        The outer intervals are unbounded: value 0 covers (−∞, ½), value 255 covers (254½, ∞).

        Args:
            pixels: float (..., 3), grey levels 0 to 255.

        Returns:
            float32 (..., 3), bits.
        """
        inverse_scales = torch.exp(-self.log_scales)
        distance = pixels[..., None] - self.conditional_means(pixels)
        value = pixels[..., None]
        below, above, inner = self._log_probabilities(distance, inverse_scales)
        log_likelihood = torch.where(value < 0.5, below, torch.where(value > 254.5, above, inner))
        weights = torch.log_softmax(self.logits, dim=-1)
        return torch.logsumexp(weights + log_likelihood, dim=-1) * (-1 / math.log(2))

    @staticmethod
    def _cdf_integral(z: Tensor) -> Tensor:
        """The integral of a component's CDF from −∞ to z."""
        return F.softplus(z)

    @staticmethod
    def _log_probabilities(distance: Tensor, inverse_scales: Tensor) -> tuple[Tensor, ...]:
        """Log probabilities below the upper edge, above the lower edge and between the edges."""
        upper = (distance + 0.5) * inverse_scales
        lower = (distance - 0.5) * inverse_scales
        # log(σ(u) − σ(l)) = log σ(u) + log σ(−l) + log(1 − e^(l − u)) is stable for any distance.
        below, above = -F.softplus(-upper), -F.softplus(lower)
        return below, above, below + above + torch.log(-torch.expm1(-inverse_scales))


class GaussianMixture(Mixture):
    """As `Mixture`, with Gaussians: the scales are standard deviations, C is the normal CDF Φ."""

    @staticmethod
    def _cdf_integral(z: Tensor) -> Tensor:
        density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
        return z * torch.special.ndtr(z) + density

    @staticmethod
    def _log_probabilities(distance: Tensor, inverse_scales: Tensor) -> tuple[Tensor, ...]:
        below = torch.special.log_ndtr((distance + 0.5) * inverse_scales)
        above = torch.special.log_ndtr((0.5 - distance) * inverse_scales)
        # Between the edges: by symmetry the interval is moved below the mean, where
        # log(Φ(u) − Φ(l)) = log Φ(u) + log(1 − Φ(l)/Φ(u)) is stable.
        nearer = torch.special.log_ndtr((0.5 - distance.abs()) * inverse_scales)
        farther = torch.special.log_ndtr((-0.5 - distance.abs()) * inverse_scales)
        return below, above, nearer + torch.log(-torch.expm1(farther - nearer))


# The likelihoods for which the entropy coder has tables, by name.
LIKELIHOODS: dict[str, type[Mixture]] = {"logistic": Mixture, "gaussian": GaussianMixture}


def likelihood_of(mixture: object) -> str:
    """The name of the likelihood of a mixture.

    Raises:
        SettingError: the entropy coder has no tables of this likelihood.
    """
    for name, kind in LIKELIHOODS.items():
        if type(mixture) is kind:
            return name
    raise SettingError(
        f"the likelihood {type(mixture).__name__} has no coder: expected a "
        f"{' or '.join(kind.__name__ for kind in LIKELIHOODS.values())}, or training.exact=false, "
        "which trains without export"
    )


class MixtureHead(torch.nn.Module):
    """Converts the raw output of a network to a `Mixture` with means relative to a base image.

    For raw output 0, the value at initialisation, the components are spread around the base image.
    The mean of green then follows the deviation of red from the base image, and that of blue the
    deviation of green.

    Args:
        components: number of components K, 1 to `MAX_COMPONENTS`.
        likelihood: key of `LIKELIHOODS`.

    Raises:
        SettingError: there is no such likelihood, or K is out of range.
    """

    SPREAD = 16.0  # grey levels per unit of raw offset
    START_LOG_SCALE = 2.3  # log-scale for raw output 0
    COEFFICIENT = 0.25  # coefficient per unit of raw output
    MAX_COEFFICIENT = 4.0  # largest magnitude of a coefficient

    def __init__(self, components: int, likelihood: str = "logistic") -> None:
        super().__init__()
        check_range("components", components, 1, MAX_COMPONENTS)
        if likelihood not in LIKELIHOODS:
            raise SettingError(
                f"unknown likelihood '{likelihood}': expected {' or '.join(LIKELIHOODS)}"
            )
        self.components, self.likelihood = components, likelihood
        last = max(1, components - 1)
        spread = torch.tensor([(2 * k - components + 1) / last for k in range(components)])
        self.offset_start: Tensor
        self.coefficient_start: Tensor
        self.register_buffer("offset_start", spread, persistent=False)
        start = torch.tensor([1.0, 0.0, 1.0])[:, None]
        self.register_buffer("coefficient_start", start, persistent=False)

    @property
    def channels(self) -> int:
        """Number of raw outputs per pixel: 3 colours × 4 parameters × K."""
        return 12 * self.components

    def forward(self, raw: Tensor, base_image: Tensor) -> Mixture:
        """Mixtures from the raw output of a network and a base image.

        Args:
            raw: float (B, 12K, …).
            base_image: float or int (B, 3, …), grey levels.

        Returns:
            Mixture with fields float32 (B, …, 3, K).
        """
        numbers = raw.movedim(1, -1).unflatten(-1, (4, 3, self.components)).float()
        logits, offsets, log_scales, coefficients = numbers.unbind(-3)
        base = base_image.movedim(1, -1)[..., None]
        coefficients = (self.coefficient_start + self.COEFFICIENT * coefficients).clamp(
            -self.MAX_COEFFICIENT, self.MAX_COEFFICIENT
        )
        means = base + self.SPREAD * (self.offset_start + offsets)
        # mean = base + offset + Σ c·(colour − base of that colour), expressed relative to CENTRE.
        red, green = (base[..., :2, :] - CENTRE).unbind(-2)
        on_red, blue_red, blue_green = coefficients.unbind(-2)
        shift = (torch.zeros_like(on_red), on_red * red, blue_red * red + blue_green * green)
        log_scales = (self.START_LOG_SCALE + log_scales).clamp(MIN_LOG_SCALE, MAX_LOG_SCALE)
        kind = LIKELIHOODS[self.likelihood]
        return kind(logits, means - torch.stack(shift, dim=-2), log_scales, coefficients)


def bits_of_raw(
    raw: Tensor, base_image: Tensor, pixels: Tensor, likelihood: str = "logistic"
) -> Tensor:
    """`MixtureHead(raw, base_image).bits(pixels)` for n pixels, optimised for training.

    The forward pass also computes the gradient with respect to `raw`, the only tensor saved for the
    backward pass. CPUs use a compiled kernel for logistics; otherwise the formula of `Mixture.bits`
    is evaluated.

    Args:
        raw: (n, 12K), float32, bfloat16 or float16; K at most 341.
        base_image: float (n, 3), grey levels; a constant without gradient.
        pixels: (n, 3), grey levels 0 to 255.
        likelihood: key of `LIKELIHOODS`.

    Returns:
        float32 (n, 3), bits; differentiable once.
    """
    differentiate = torch.is_grad_enabled() and raw.requires_grad
    return _BitsOfRaw.apply(raw, base_image, pixels, differentiate, likelihood)


class _BitsOfRaw(torch.autograd.Function):
    """Saves the derivatives of each sub-pixel's bits with respect to its raw outputs.

    Each raw output affects only one sub-pixel, so the derivatives have the shape of `raw`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        raw: Tensor,
        base_image: Tensor,
        pixels: Tensor,
        differentiate: bool,
        likelihood: str,
    ) -> Tensor:
        numbers = raw.detach(), base_image.float(), pixels.float(), differentiate
        if likelihood == "logistic" and _has_kernel(raw):
            bits, gradient = _bits_by_kernel(*numbers)
        else:
            bits, gradient = _bits_by_formula(*numbers, likelihood)
        ctx.raw_dtype = raw.dtype
        ctx.save_for_backward(gradient)
        return bits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        if _has_kernel(gradient):
            result = torch.empty_like(gradient)
            arrays = (x.numpy() for x in (gradient, weights.contiguous(), result))
            mixture_kernel.weighted(*arrays)
        else:  # the three coefficients belong to green, blue and blue
            of_outputs = torch.cat([weights.repeat(1, 3), weights[:, [1, 2, 2]]], dim=1)
            result = (gradient.unflatten(1, (12, -1)) * of_outputs[..., None]).flatten(1)
        return result.to(ctx.raw_dtype), None, None, None, None


def _has_kernel(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


@cache
def _head(components: int, likelihood: str, device: torch.device) -> MixtureHead:
    with torch.inference_mode(False):  # tensors of inference mode can't be used in training
        return MixtureHead(components, likelihood).to(device)


def _bits_by_formula(
    raw: Tensor, base_image: Tensor, pixels: Tensor, differentiate: bool, likelihood: str
) -> tuple[Tensor, Tensor]:
    """Bits (n, 3) and gradient (n, 12K); without `differentiate` the gradient is (0, 12K)."""
    raw = raw.float()
    head = _head(raw.shape[1] // 12, likelihood, raw.device)
    if not differentiate:
        return head(raw, base_image).bits(pixels), raw[:0]
    with torch.enable_grad():
        bits = head(raw.requires_grad_(), base_image).bits(pixels)
        (gradient,) = torch.autograd.grad(bits.sum(), raw)
    return bits.detach(), gradient


def _bits_by_kernel(
    raw: Tensor, base_image: Tensor, pixels: Tensor, differentiate: bool
) -> tuple[Tensor, Tensor]:
    """As `_bits_by_formula`, by the compiled kernel."""
    head = _head(raw.shape[1] // 12, "logistic", raw.device)
    numbers = (raw if raw.dtype == torch.bfloat16 else raw.float()).contiguous()
    bits = torch.empty(len(raw), 3)
    gradient = torch.empty(len(raw) if differentiate else 0, raw.shape[1])
    mixture_kernel.bits_and_gradient(
        (numbers.view(torch.int16) if numbers.dtype == torch.bfloat16 else numbers).numpy(),
        base_image.contiguous().numpy(),
        pixels.contiguous().numpy(),
        head.offset_start.numpy(),
        head.coefficient_start[:, 0].numpy(),
        np.array([head.SPREAD, head.COEFFICIENT, head.START_LOG_SCALE], np.float32),
        np.array(
            [MIN_LOG_SCALE, MAX_LOG_SCALE, -head.MAX_COEFFICIENT, head.MAX_COEFFICIENT], np.float32
        ),
        bits.numpy(),
        gradient.numpy(),
    )
    return bits, gradient

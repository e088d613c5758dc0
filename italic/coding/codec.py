"""Image ↔ base code and stream, step by step: encoder and decoder share one loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from italic import masks
from italic.coding.base import BaseCode
from italic.coding.entropy import MixtureParameters, Reader, StreamError, Writer
from italic.models.likelihood import Mixture


@dataclass(frozen=True)
class Coded:
    """An image in bytes: its base code and the entropy-coded stream of all its steps."""

    base: bytes
    stream: bytes

    @property
    def bits(self) -> int:
        """Size in bits."""
        return 8 * (len(self.base) + len(self.stream))


class Coder(Protocol):
    """A `Writer` or a `Reader`: codes pixels and returns them."""

    def code(self, parameters: MixtureParameters, pixels: Any) -> np.ndarray:
        """Code the pixels, uint8 (n, 3): given ones into a stream, or (None) from it."""


# Called after each step: step, flat indices of its pixels (n,), their mixtures (B, n, 3, K), the
# pixels (B, n, 3).
Observer = Callable[[int, np.ndarray, Mixture, Tensor], None]


class Codec:
    """Codes images of one size in a fixed number of steps.

    The network computes in floating point: a stream decodes with the same network, batch size and
    number of threads, on the kind of machine and library versions that wrote it.

    Args:
        network: (image, base, known, features) → (mixtures, features), in evaluation mode.
        base: the base code.
        steps: number of steps.
        order: name of the pixel order.
        sizes: how the step sizes are chosen, see `masks.step_bounds`.
        exponent: growth of `power` sizes.
    """

    def __init__(
        self,
        network: nn.Module,
        base: BaseCode,
        steps: int,
        order: str = "nested",
        sizes: str | Sequence[float] = "power",
        exponent: float = 1.0,
    ) -> None:
        self.network, self.base, self.steps = network, base, steps
        self.order, self.sizes, self.exponent = order, sizes, exponent

    def encode(self, images: np.ndarray, observer: Observer | None = None) -> list[Coded]:
        """Images, uint8 (B, H, W, 3), in bytes.

        Raises:
            ValueError: images of another type or shape, or fewer pixels than steps.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(
                f"expected images as uint8 (B, H, W, 3); got {images.dtype} {images.shape}"
            )
        height, width = images.shape[1:3]
        base_codes = [self.base.encode(image) for image in images]
        bases = np.stack([self.base.decode(code, height, width) for code in base_codes])
        writers = [Writer() for _ in images]
        self._code(writers, bases, images, observer)
        streams = [writer.finish() for writer in writers]
        return [Coded(*parts) for parts in zip(base_codes, streams, strict=True)]

    def decode(self, coded: Sequence[Coded], height: int, width: int) -> np.ndarray:
        """The images, uint8 (B, H, W, 3), of as many coded ones, given their size.

        Raises:
            ValueError: a base code or stream that is damaged or of another size
                (`StreamError`, `BPGError`).
        """
        bases = np.stack([self.base.decode(code.base, height, width) for code in coded])
        readers = [Reader(code.stream) for code in coded]
        images = self._code(readers, bases, None, None)
        for reader in readers:
            reader.finish()
        return images

    @torch.inference_mode()
    def _code(
        self,
        coders: Sequence[Coder],
        bases: np.ndarray,
        images: np.ndarray | None,
        observer: Observer | None,
    ) -> np.ndarray:
        batch, height, width, _ = bases.shape
        order = masks.pixel_order(self.order, height, width)
        bounds = masks.step_bounds(len(order), self.steps, self.sizes, self.exponent)
        device = next(self.network.parameters()).device
        base = torch.from_numpy(bases).permute(0, 3, 1, 2).float().contiguous().to(device)
        canvas = torch.zeros_like(base)  # what both sides know
        known = torch.zeros(batch, 1, height, width, device=device)
        flat = None if images is None else images.reshape(batch, -1, 3)
        features: Tensor | None = None
        for step in range(self.steps):
            mixture, last = self.network(canvas, base, known, features)
            features = last if getattr(self.network, "recurrent", False) else None
            due = order[bounds[step] : bounds[step + 1]]
            here = torch.from_numpy(due).to(device)
            mixture = Mixture(*(field.flatten(1, 2)[:, here] for field in mixture))
            pixels = np.empty((batch, len(due), 3), np.uint8)
            for row, (coder, parameters) in enumerate(
                zip(coders, integer_parameters(mixture), strict=True)
            ):
                truth = None if flat is None else np.ascontiguousarray(flat[row, due])
                pixels[row] = coder.code(parameters, truth)
            coded = torch.from_numpy(pixels).float().to(device)
            canvas.flatten(2)[:, :, here] = coded.transpose(1, 2)
            known.flatten(2)[:, :, here] = 1
            if observer is not None:
                observer(step, due, mixture, coded)
        return canvas.permute(0, 2, 3, 1).to(torch.uint8).contiguous().cpu().numpy()


def integer_parameters(mixture: Mixture) -> list[MixtureParameters]:
    """The integers that the entropy coder works with, from mixtures with fields (B, n, 3, K).

    Logits in 1/64 (from the largest down to −32), means in 1/16 and scales' logarithms in 1/32,
    coefficients in 1/1024.

    Raises:
        StreamError: the network gave a number that is not finite.
    """
    logits = mixture.logits - mixture.logits.amax(dim=-1, keepdim=True)
    scaled = (
        64 * logits.clamp(min=-32),
        16 * mixture.means.clamp(-4096, 4096),
        32 * mixture.log_scales,
        1024 * mixture.coefficients,
    )
    if not all(bool(torch.isfinite(field).all()) for field in scaled):
        raise StreamError("the network's output is not finite: its weights are damaged")
    integers = [field.round().int().contiguous().cpu().numpy() for field in scaled]
    return [MixtureParameters(*fields) for fields in zip(*integers, strict=True)]

"""Image ↔ base code and stream, step by step: encoder and decoder share one loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from italic.coding.base_codes.base import BaseCode
from italic.coding.exact import exact_arithmetic
from italic.coding.streams.entropy import MixtureParameters, Reader, StreamError, Writer
from italic.models.likelihood import Mixture
from italic.models.network import Network
from italic.schedule import Partition, Schedule

# Sub-pixels that a byte of stream can hold, and as many as four bytes more would: up to a word may
# be left unwritten. None costs nothing: the likeliest value has at most 1 - 255/2^22 of the
# probability, which makes about 91 000 a byte.
SYMBOLS_PER_BYTE = 2**17


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


# Called after each part of a step that the network estimates at a time: step, flat indices of the
# pixels coded (n,), their mixtures (B, n, 3, K), the pixels (B, n, 3).
Observer = Callable[[int, np.ndarray, Mixture, Tensor], None]


class Codec:
    """Codes images of one size in a fixed number of steps.

    Args:
        network: an estimator, in evaluation mode. Streams of an exact
            network (`italic.coding.exact`) decode everywhere; those of another one, with the same
            batch size and number of threads on the same machine.
        base: the base code.
        schedule: which pixels are coded in which step.
        steps: number of steps.
        rung: number of the base code among those that the network knows.
    """

    def __init__(
        self,
        network: Network,
        base: BaseCode,
        schedule: Schedule,
        steps: int,
        rung: int = 0,
    ) -> None:
        self.network, self.base, self.schedule = network, base, schedule
        self.steps, self.rung = steps, rung

    def partition(self, height: int, width: int) -> Partition:
        """Its steps of a picture.

        Raises:
            ValueError: fewer pixels than steps.
        """
        return self.schedule.partition(height, width, self.steps)

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

    def decode(
        self,
        coded: Sequence[Coded],
        height: int,
        width: int,
        observer: Observer | None = None,
        steps_done: int | None = None,
    ) -> np.ndarray:
        """The images, uint8 (B, H, W, 3), of as many coded ones, given their size.

        Args:
            coded: base codes and streams.
            height: of the images.
            width: of the images.
            observer: called after each part of each step.
            steps_done: None for the exact images; else as they are known after so many steps, with
                the pixels of later ones as in `expect`. Nothing later in the streams is read.

        Raises:
            ValueError: a base code or stream that is damaged or of another size
                (`StreamError`, `BPGError`), or more steps done than there are.
        """
        done = self.steps if steps_done is None else steps_done
        if not 0 <= done <= self.steps:
            raise ValueError(f"expected from 0 to {self.steps} steps done; got {done}")
        # Before anything of the picture's size is made: a few bytes may claim any size.
        for code in coded:
            if 3 * height * width > SYMBOLS_PER_BYTE * (len(code.stream) + 4):
                raise StreamError(
                    f"The stream is truncated or damaged: {len(code.stream)} bytes are too few for "
                    f"{height} × {width} pixels."
                )
        readers = [Reader(code.stream) for code in coded]
        bases = np.stack([self.base.decode(code.base, height, width) for code in coded])
        images = self._code(readers, bases, None, observer, done)
        if done == self.steps:
            for reader in readers:
                reader.finish()
        return images

    def expect(
        self, bases: Sequence[bytes], height: int, width: int, mirrored: bool = False
    ) -> np.ndarray:
        """The images that the model expects, given their base codes.

        The pixels of each step are their expectations, which the next step takes for known.

        Args:
            bases: the base codes.
            height: of the images.
            width: of the images.
            mirrored: the average with what it expects of the mirrored images, in twice the time
                (a self-ensemble, Timofte et al. 2016, arXiv 1511.02228).

        Returns:
            uint8 (B, H, W, 3).
        """
        decoded = np.stack([self.base.decode(base, height, width) for base in bases])
        expected = self._code([], decoded, None, None, 0)
        if not mirrored:
            return expected
        other = self._code([], decoded[:, :, ::-1].copy(), None, None, 0)[:, :, ::-1]
        return ((expected.astype(np.uint16) + other + 1) // 2).astype(np.uint8)

    def sample(
        self, bases: Sequence[bytes], height: int, width: int, random: np.random.Generator
    ) -> np.ndarray:
        """Draw images from the model, given their base codes: it decodes random bytes.

        Returns:
            uint8 (B, H, W, 3).
        """
        # More than any sub-pixel can take, see SYMBOLS_PER_BYTE: the likelihoods have 22 bits.
        readers = [Reader(random.bytes(3 * 3 * height * width + 8)) for _ in bases]
        decoded = np.stack([self.base.decode(base, height, width) for base in bases])
        return self._code(readers, decoded, None, None)

    @torch.inference_mode()
    @exact_arithmetic()
    def _code(
        self,
        coders: Sequence[Coder],
        bases: np.ndarray,
        images: np.ndarray | None,
        observer: Observer | None,
        done: int | None = None,  # steps to code; the pixels of later ones are expectations
    ) -> np.ndarray:
        batch, height, width, _ = bases.shape
        partition = self.partition(height, width)
        device = next(self.network.parameters()).device
        base = torch.from_numpy(bases).to(device)
        canvas = torch.zeros_like(base).flatten(1, 2)  # what both sides know
        image = canvas.unflatten(1, (height, width))
        flat = None if images is None else images.reshape(batch, -1, 3)
        memory: dict[Any, Tensor] = {}  # of the network, from step to step
        for step in range(self.steps):
            coded = []
            for here, mixture in self.network.estimates(
                image, base, partition, partition.due(step), self.rung, memory
            ):
                if done is not None and step >= done:
                    pixels = mixture.expectation().round().byte().cpu().numpy()
                else:
                    truths = [None] * batch if flat is None else flat.take(here, axis=1)
                    rows = zip(coders, integer_parameters(mixture), truths, strict=True)
                    pixels = np.stack([coder.code(*row) for coder, *row in rows])
                coded.append((here, pixels))
                if observer is not None:
                    observer(step, here, mixture, torch.from_numpy(pixels).float().to(device))
            for here, pixels in coded:  # only now: the pixels of a step don't know each other
                canvas[:, torch.from_numpy(here).to(device)] = torch.from_numpy(pixels).to(device)
        return image.cpu().numpy()


def integer_parameters(mixture: Mixture) -> list[MixtureParameters]:
    """The integers that the entropy coder works with, from mixtures with fields (B, n, 3, K).

    Logits in 1/64 (from the largest down to −32), means in 1/16 and scales' logarithms in 1/32,
    coefficients in 1/1024.

    Raises:
        StreamError: the network gave a number that is not finite.
    """
    scaled = (
        (mixture.logits - mixture.logits.amax(dim=-1, keepdim=True)).clamp_(min=-32).mul_(64),
        mixture.means.clamp(-4096, 4096).mul_(16),
        mixture.log_scales * 32,
        mixture.coefficients * 1024,
    )
    # A number that is not finite makes its sum so too.
    if not all(math.isfinite(field.sum()) for field in scaled):
        raise StreamError("the network's output is not finite: its weights are damaged")
    integers = [field.round_().int().contiguous().cpu().numpy() for field in scaled]
    return [MixtureParameters(*fields) for fields in zip(*integers, strict=True)]

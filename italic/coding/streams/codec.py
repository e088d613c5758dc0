"""The codec: images to base codes and streams and back; encoder and decoder share one loop."""

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

# Upper bound of the sub-pixels per byte of a stream, where up to four bytes at the end may be left
# unwritten. Each sub-pixel has a cost: the probability of a value is at most 1 - 255/2^22, which
# gives about 91 000 sub-pixels per byte.
SYMBOLS_PER_BYTE = 2**17


@dataclass(frozen=True)
class Coded:
    """A coded image: its base code and the entropy-coded stream of all its steps."""

    base: bytes
    stream: bytes

    @property
    def bits(self) -> int:
        """Size in bits."""
        return 8 * (len(self.base) + len(self.stream))


class Coder(Protocol):
    """Common interface of `Writer` and `Reader`."""

    def code(self, parameters: MixtureParameters, pixels: Any) -> np.ndarray:
        """Write given pixels, uint8 (n, 3), or read them if `pixels` is None; return them."""


# Called after each part of a step that the network estimates together. Arguments: step, flat
# indices of the coded pixels (n,), their mixtures (B, n, 3, K), the pixels (B, n, 3).
Observer = Callable[[int, np.ndarray, Mixture, Tensor], None]


class Codec:
    """Codes images of one size in a fixed number of steps.

    Args:
        network: an estimator in evaluation mode. Streams of an exact network
            (`italic.coding.exact`) can be decoded on any machine. Streams of other networks need
            the same machine, batch size and number of threads.
        base: the base code.
        schedule: pixel order and step sizes.
        steps: number of steps.
        rung: index of the base code among those that the network was trained with.
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
        """The steps of an image of this size.

        Raises:
            ValueError: there are fewer pixels than steps.
        """
        return self.schedule.partition(height, width, self.steps)

    def encode(self, images: np.ndarray, observer: Observer | None = None) -> list[Coded]:
        """Encode images, uint8 (B, H, W, 3).

        Raises:
            ValueError: the images have another type or shape, or fewer pixels than steps.
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
        """Decode images of one size to uint8 (B, H, W, 3).

        Args:
            coded: base codes and streams.
            height: height of the images.
            width: width of the images.
            observer: called after each part of each step.
            steps_done: number of steps to decode; None for all. The pixels of later steps are
                expectations, as in `expect`, and the rest of the streams is not read.

        Raises:
            ValueError: a base code or stream is damaged or of another size (`StreamError`,
                `BPGError`), or `steps_done` exceeds the number of steps.
        """
        done = self.steps if steps_done is None else steps_done
        if not 0 <= done <= self.steps:
            raise ValueError(f"expected from 0 to {self.steps} steps done; got {done}")
        # This precedes any allocation of the image's size, since a few bytes may claim any size.
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
        """The expected images, given their base codes.

        The pixels of each step are set to their expectations and used as known pixels in the later
        steps.

        Args:
            bases: the base codes.
            height: height of the images.
            width: width of the images.
            mirrored: average with the expectation of the mirrored images, in twice the time
                (self-ensemble, Timofte et al. 2016, arXiv 1511.02228).

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
        """Sample images from the model, given their base codes, by decoding random bytes.

        Returns:
            uint8 (B, H, W, 3).
        """
        # A sub-pixel takes at most 22 bits, since probabilities are multiples of 2^-22.
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
        done: int | None = None,  # steps to code, None for all; later pixels are expectations
    ) -> np.ndarray:
        batch, height, width, _ = bases.shape
        partition = self.partition(height, width)
        device = next(self.network.parameters()).device
        base = torch.from_numpy(bases).to(device)
        known = torch.zeros_like(base).flatten(1, 2)  # the pixels of all earlier steps
        image = known.unflatten(1, (height, width))
        flat = None if images is None else images.reshape(batch, -1, 3)
        memory: dict[Any, Tensor] = {}  # state of the network between steps
        for step in range(self.steps):
            coded = []
            for indices, mixture in self.network.estimates(
                image, base, partition, partition.due(step), self.rung, memory
            ):
                if done is not None and step >= done:
                    pixels = mixture.expectation().round().byte().cpu().numpy()
                else:
                    truths = [None] * batch if flat is None else flat.take(indices, axis=1)
                    rows = zip(coders, integer_parameters(mixture), truths, strict=True)
                    pixels = np.stack([coder.code(*row) for coder, *row in rows])
                coded.append((indices, pixels))
                if observer is not None:
                    observer(step, indices, mixture, torch.from_numpy(pixels).float().to(device))
            # After the step, since the pixels of a step are independent of each other.
            for indices, pixels in coded:
                known[:, torch.from_numpy(indices).to(device)] = torch.from_numpy(pixels).to(device)
        return image.cpu().numpy()


def integer_parameters(mixture: Mixture) -> list[MixtureParameters]:
    """Quantise mixtures with fields (B, n, 3, K) to integer parameters of the entropy coder.

    Logits are in units of 1/64, relative to the largest one and at least −32. Means are in units
    of 1/16, logarithms of scales in units of 1/32, coefficients in units of 1/1024.

    Raises:
        StreamError: the output of the network is not finite.
    """
    scaled = (
        (mixture.logits - mixture.logits.amax(dim=-1, keepdim=True)).clamp_(min=-32).mul_(64),
        mixture.means.clamp(-4096, 4096).mul_(16),
        mixture.log_scales * 32,
        mixture.coefficients * 1024,
    )
    # If a number is not finite, the sum is not finite either.
    if not all(math.isfinite(field.sum()) for field in scaled):
        raise StreamError("the network's output is not finite: its weights are damaged")
    integers = [field.round_().int().contiguous().cpu().numpy() for field in scaled]
    return [MixtureParameters(*fields) for fields in zip(*integers, strict=True)]

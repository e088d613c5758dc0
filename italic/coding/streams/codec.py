"""The codec: images to base codes and streams and back; all uses share one loop over the steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from italic.coding.base_codes.base import BaseCode
from italic.coding.exact import exact_arithmetic
from italic.coding.streams.entropy import MixtureParameters, Reader, StreamError, Writer, bits
from italic.coding.streams.size_limits import SizeLimits, SizeLimitsExceededError
from italic.models.likelihood import Mixture, likelihood_of
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


# Gives the pixels of a part of a step, uint8 (B, n, 3). Arguments: step, flat indices of the pixels
# (n,), their mixtures (B, n, 3, K).
PixelSource = Callable[[int, np.ndarray, Mixture], np.ndarray]
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
        writers = [Writer() for _ in images]
        base_codes = self._given(images, _writing(writers, images), observer)
        return _finished(base_codes, writers)

    def encode_within(
        self, images: np.ndarray, limits: Sequence[int], observer: Observer | None = None
    ) -> list[Coded | None]:
        """Encode images of which only results of a limited size are of use.

        The work ends as soon as no image can stay within its limit, see `SizeLimits`.

        Args:
            images: uint8 (B, H, W, 3).
            limits: largest number of bytes of each image.
            observer: called after each part of each step.

        Returns:
            The coded images; None for those that exceed their limit.

        Raises:
            ValueError: as `encode`.
        """
        writers = [Writer() for _ in images]
        write = _writing(writers, images)
        within = SizeLimits(writers, limits, images.shape[1] * images.shape[2])

        def write_within(step: int, indices: np.ndarray, mixture: Mixture) -> np.ndarray:
            pixels = write(step, indices, mixture)
            within.check(step, len(indices))
            return pixels

        try:
            base_codes = self._given(images, write_within, observer)
        except SizeLimitsExceededError:
            return [None] * len(images)
        coded = zip(_finished(base_codes, writers), limits, strict=True)
        return [item if item.bits <= 8 * most else None for item, most in coded]

    def bits(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The bits that `encode` takes for images, without coding them.

        Args:
            images: uint8 (B, H, W, 3).

        Returns:
            Bits of each pixel in the streams, float64 (B, H, W), and of the base codes, int64 (B,).

        Raises:
            ValueError: as `encode`.
        """
        flat = _pixels(images)
        counted = np.zeros(flat.shape[:2])

        def count(_: int, indices: np.ndarray, mixture: Mixture) -> np.ndarray:
            pixels = flat.take(indices, axis=1)
            rows = zip(integer_parameters(mixture), pixels, strict=True)
            counted[:, indices] = [bits(*row).sum(axis=1) for row in rows]
            return pixels

        base_codes = self._given(images, count, None)
        return counted.reshape(images.shape[:3]), np.array([8 * len(code) for code in base_codes])

    def estimate(self, images: np.ndarray, observer: Observer) -> list[bytes]:
        """Call the observer as `encode`, but write no streams, for likelihoods without a coder.

        Returns:
            The base codes of the images.
        """
        flat = _pixels(images)
        return self._given(images, lambda _, indices, __: flat.take(indices, axis=1), observer)

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
        read = _reading(readers)

        def choose(step: int, indices: np.ndarray, mixture: Mixture) -> np.ndarray:
            return (read if step < done else _expected)(step, indices, mixture)

        images = self._fill(bases, choose, observer)
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
        expected = self._fill(decoded, _expected)
        if not mirrored:
            return expected
        other = self._fill(decoded[:, :, ::-1].copy(), _expected)[:, :, ::-1]
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
        return self._fill(decoded, _reading(readers))

    def _given(
        self, images: np.ndarray, choose: PixelSource, observer: Observer | None
    ) -> list[bytes]:
        """Fill images with their own pixels, from their base codes, which are returned."""
        height, width = images.shape[1:3]
        base_codes = [self.base.encode(image) for image in images]
        bases = np.stack([self.base.decode(code, height, width) for code in base_codes])
        self._fill(bases, choose, observer)
        return base_codes

    @torch.inference_mode()
    @exact_arithmetic()
    def _fill(
        self, bases: np.ndarray, choose: PixelSource, observer: Observer | None = None
    ) -> np.ndarray:
        """Estimate the pixels of each step and set them to those that `choose` returns.

        Args:
            bases: reconstructions of the base codes, uint8 (B, H, W, 3).
            choose: source of the pixels.
            observer: called after each part of each step.

        Returns:
            The filled images, uint8 (B, H, W, 3).
        """
        height, width = bases.shape[1:3]
        partition = self.partition(height, width)
        device = next(self.network.parameters()).device
        base = torch.from_numpy(bases).to(device)
        known = torch.zeros_like(base).flatten(1, 2)  # the pixels of all earlier steps
        image = known.unflatten(1, (height, width))
        memory: dict[Any, Tensor] = {}  # state of the network between steps
        for step in range(self.steps):
            chosen = []
            for indices, mixture in self.network.estimates(
                image, base, partition, partition.due(step), self.rung, memory
            ):
                pixels = torch.from_numpy(choose(step, indices, mixture)).to(device)
                chosen.append((indices, pixels))
                if observer is not None:
                    observer(step, indices, mixture, pixels.float())
            # After the step, since the pixels of a step are independent of each other.
            for indices, pixels in chosen:
                known[:, torch.from_numpy(indices).to(device)] = pixels
        return image.cpu().numpy()


def _pixels(images: np.ndarray) -> np.ndarray:
    """The pixels of images, uint8 (B, H·W, 3); ValueError for images of another type or shape."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(
            f"expected images as uint8 (B, H, W, 3); got {images.dtype} {images.shape}"
        )
    return images.reshape(len(images), -1, 3)


def _finished(base_codes: Sequence[bytes], writers: Sequence[Writer]) -> list[Coded]:
    streams = [writer.finish() for writer in writers]
    return [Coded(*parts) for parts in zip(base_codes, streams, strict=True)]


def _writing(writers: Sequence[Writer], images: np.ndarray) -> PixelSource:
    """The pixels of given images, uint8 (B, H, W, 3), which are also written to the streams."""
    flat = _pixels(images)

    def write(_: int, indices: np.ndarray, mixture: Mixture) -> np.ndarray:
        pixels = flat.take(indices, axis=1)
        for writer, *row in zip(writers, integer_parameters(mixture), pixels, strict=True):
            writer.code(*row)
        return pixels

    return write


def _reading(readers: Sequence[Reader]) -> PixelSource:
    """The pixels that are read from the streams."""

    def read(_: int, __: np.ndarray, mixture: Mixture) -> np.ndarray:
        rows = zip(readers, integer_parameters(mixture), strict=True)
        return np.stack([reader.code(parameters) for reader, parameters in rows])

    return read


def _expected(_: int, __: np.ndarray, mixture: Mixture) -> np.ndarray:
    """The expectations of the mixtures."""
    return mixture.expectation().round().byte().cpu().numpy()


def integer_parameters(mixture: Mixture) -> list[MixtureParameters]:
    """Quantise mixtures with fields (B, n, 3, K) to integer parameters of the entropy coder.

    Logits are in units of 1/64, relative to the largest one and at least −32. Means are in units
    of 1/16, logarithms of scales in units of 1/32, coefficients in units of 1/1024.

    Raises:
        StreamError: the output of the network is not finite.
        SettingError: the coder has no tables of this likelihood.
    """
    likelihood = likelihood_of(mixture)
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
    return [
        MixtureParameters(logits, means, log_scales, coefficients, likelihood)
        for logits, means, log_scales, coefficients in zip(*integers, strict=True)
    ]

"""The codec: images to base codes and streams and back; all uses share one loop over the steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from italic.coding.base_codes.base import BaseCode
from italic.coding.exact import exact_arithmetic
from italic.coding.streams.entropy import READ_AHEAD, Reader, StreamError, Writer, bits
from italic.coding.streams.pixel_sources import (
    PixelSource,
    expectations,
    flat_pixels,
    integer_parameters,
    reading,
    writing,
)
from italic.coding.streams.size_limits import SizeLimits, SizeLimitsExceededError
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
            ValueError: there are fewer pixels than steps, or the order or the sizes are invalid
                (`SettingError`).
        """
        return self.schedule.partition(height, width, self.steps)

    def encode(self, images: np.ndarray, observer: Observer | None = None) -> list[Coded]:
        """Encode images, uint8 (B, H, W, 3).

        Raises:
            ValueError: the images have another type or shape, or fewer pixels than steps.
        """
        writers = [Writer() for _ in images]
        base_codes = self._given(images, writing(writers, images), observer)
        return _finished(base_codes, writers)

    def encode_within(
        self, images: np.ndarray, limits: Sequence[int], observer: Observer | None = None
    ) -> list[Coded | None]:
        """Encode images of which only results of a limited size are of use.

        The work ends as soon as no image can stay within its limit, see `SizeLimits`. The result of
        an image does not depend on the other images.

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
        write = writing(writers, images)
        bounds = self.partition(*images.shape[1:3]).bounds.tolist()
        within = SizeLimits(writers, limits, bounds)

        def write_within(step: int, indices: np.ndarray, mixture: Mixture) -> np.ndarray:
            pixels = write(step, indices, mixture)
            within.check(step, len(indices))
            return pixels

        try:
            base_codes = self._given(images, write_within, observer)
        except SizeLimitsExceededError:
            return [None] * len(images)
        coded = zip(_finished(base_codes, writers), limits, within.exceeded, strict=True)
        return [
            None if exceeded or item.bits > 8 * most else item for item, most, exceeded in coded
        ]

    def encode_segments(
        self, image: np.ndarray, observer: Observer | None = None
    ) -> tuple[bytes, list[bytes]]:
        """Encode one image, uint8 (H, W, 3), as `encode`, and divide the stream by steps.

        Returns:
            The base code, and a segment of the stream for each step. The segments of the first
            steps hold all bytes that `decode` reads to decode these steps.

        Raises:
            ValueError: as `encode`.
        """
        writer = Writer()
        write = writing([writer], image[None])
        ends = [0] * self.steps

        def write_step(step: int, indices: np.ndarray, mixture: Mixture) -> np.ndarray:
            pixels = write(step, indices, mixture)
            ends[step] = writer.size + READ_AHEAD
            return pixels

        (base,) = self._given(image[None], write_step, observer)
        stream = writer.finish()
        bounds = [0, *(min(end, len(stream)) for end in ends[:-1]), len(stream)]
        return base, [stream[start:end] for start, end in pairwise(bounds)]

    def bits(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The bits that `encode` takes for images, without coding them.

        Args:
            images: uint8 (B, H, W, 3).

        Returns:
            Bits of each pixel in the streams, float64 (B, H, W), and of the base codes, int64 (B,).

        Raises:
            ValueError: as `encode`.
        """
        flat = flat_pixels(images)
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

        Args:
            images: uint8 (B, H, W, 3).
            observer: called after each part of each step.

        Returns:
            The base codes of the images.

        Raises:
            ValueError: as `encode`.
        """
        flat = flat_pixels(images)
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
            check_length(len(code.stream), height, width)
        readers = [Reader(code.stream) for code in coded]
        bases = np.stack([self.base.decode(code.base, height, width) for code in coded])
        read = reading(readers)

        def choose(step: int, indices: np.ndarray, mixture: Mixture) -> np.ndarray:
            return (read if step < done else expectations)(step, indices, mixture)

        images = self._fill(bases, choose, observer)
        if done == self.steps:
            for reader in readers:
                reader.finish()
        return images

    def steps_held(self, coded: Coded, height: int, width: int) -> int:
        """The number of first steps that a stream holds whole, if its end is missing.

        It takes as much time as decoding these steps.

        Args:
            coded: base code, and the beginning of a stream.
            height: height of the image.
            width: width of the image.

        Raises:
            ValueError: as `decode`.
        """
        check_length(len(coded.stream), height, width)
        reader = Reader(coded.stream)
        read = reading([reader])

        def choose(step: int, indices: np.ndarray, mixture: Mixture) -> np.ndarray:
            try:
                pixels = read(step, indices, mixture)
            except StreamError:
                if not reader.beyond_end:
                    raise
            # The reader takes zeros for missing bytes, so the pixels may be wrong.
            if reader.beyond_end:
                raise _StreamEndsError(step)
            return pixels

        try:
            self._fill(self.base.decode(coded.base, height, width)[None], choose)
        except _StreamEndsError as end:
            return end.step
        return self.steps

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

        Raises:
            ValueError: a base code is damaged or of another size, or as `partition`.
        """
        decoded = np.stack([self.base.decode(base, height, width) for base in bases])
        expected = self._fill(decoded, expectations)
        if not mirrored:
            return expected
        other = self._fill(decoded[:, :, ::-1].copy(), expectations)[:, :, ::-1]
        return ((expected.astype(np.uint16) + other + 1) // 2).astype(np.uint8)

    def sample(
        self, bases: Sequence[bytes], height: int, width: int, random: np.random.Generator
    ) -> np.ndarray:
        """Sample images from the model, given their base codes, by decoding random bytes.

        Args:
            bases: the base codes.
            height: height of the images.
            width: width of the images.
            random: source of the bytes.

        Returns:
            uint8 (B, H, W, 3).

        Raises:
            ValueError: as `expect`; or the likelihood has no coder (`SettingError`).
        """
        # A sub-pixel takes at most 22 bits, since probabilities are multiples of 2^-22.
        readers = [Reader(random.bytes(3 * 3 * height * width + 8)) for _ in bases]
        decoded = np.stack([self.base.decode(base, height, width) for base in bases])
        return self._fill(decoded, reading(readers))

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


class _StreamEndsError(Exception):
    """A stream ends within a step."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


def check_length(length: int, height: int, width: int) -> None:
    """Raise StreamError if a stream of `length` bytes is too short for an image of this size."""
    if 3 * height * width > SYMBOLS_PER_BYTE * (length + 4):
        raise StreamError(
            f"the stream is truncated or damaged: {length} bytes are too few for {height} × "
            f"{width} pixels"
        )


def _finished(base_codes: Sequence[bytes], writers: Sequence[Writer]) -> list[Coded]:
    streams = [writer.finish() for writer in writers]
    return [Coded(*parts) for parts in zip(base_codes, streams, strict=True)]

"""Image ↔ base code and stream, step by step: encoder and decoder share one loop.

Pictures larger than a tile are estimated tile by tile, with what is known of the neighbours around
each: memory stays bounded, and as every step goes over the whole picture before the next one
begins, a tile's edge knows as much on its outer side as on its inner one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from italic.coding.base import BaseCode
from italic.coding.entropy import MixtureParameters, Reader, StreamError, Writer
from italic.coding.exact import exact_arithmetic
from italic.models.likelihood import Mixture
from italic.schedule import Partition, Schedule

TILE = 192  # pixels a side
HALO = 16  # pixels around a tile that its estimator sees
# Tiles and crops begin at multiples of this: the known pixels' pattern then lies in a crop as it
# lay in training, which is worth 1 to 2 % of the bits.
ALIGNED = 16
REMEMBERED = 2**20  # pixels; a recurrent network's features of larger pictures are not kept
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


# Called after each tile of each step: step, flat indices of the pixels coded (n,), their mixtures
# (B, n, 3, K), the pixels (B, n, 3).
Observer = Callable[[int, np.ndarray, Mixture, Tensor], None]


class Tile(NamedTuple):
    """A part of a picture: the crop that the estimator sees, in pixels."""

    top: int
    bottom: int
    left: int
    right: int

    def of(self, x: Tensor) -> Tensor:
        """The crop of a tensor (B, C, H, W)."""
        return x[..., self.top : self.bottom, self.left : self.right]

    def place(self, flat: np.ndarray, width: int) -> np.ndarray:
        """Flat indices in the crop of flat indices in a picture of this width."""
        y, x = np.divmod(flat, width)
        return (y - self.top) * (self.right - self.left) + x - self.left


class Lattice:
    """Every s-th pixel of every s-th row of a picture, cut into tiles as a picture of its own.

    Args:
        height: of the picture.
        width: of the picture.
        stride: s.
    """

    def __init__(self, height: int, width: int, stride: int) -> None:
        self.stride, self.picture_width, self.width = stride, width, -(-width // stride)
        self.tiles, self.tile_of_place = cut_into_tiles(-(-height // stride), self.width)

    def place(self, flat: np.ndarray) -> np.ndarray:
        """Flat indices on the lattice of flat indices in the picture."""
        y, x = np.divmod(flat, self.picture_width)
        return y // self.stride * self.width + x // self.stride

    def shares(self, due: np.ndarray) -> Iterator[tuple[Tile, np.ndarray]]:
        """The tiles, and which of the pixels due (flat indices in the picture) each one codes."""
        tile = self.tile_of_place[self.place(due)]
        ends = np.cumsum(np.bincount(tile, minlength=len(self.tiles)))
        due = due[np.argsort(tile, kind="stable")]
        return zip(self.tiles, np.split(due, ends[:-1]), strict=True)


class Codec:
    """Codes images of one size in a fixed number of steps.

    Args:
        network: → (mixtures, features), see `RNAN.forward`, in evaluation mode. Streams of an exact
            network (`italic.coding.exact`) decode everywhere; those of another one, with the same
            batch size and number of threads on the same machine.
        base: the base code.
        schedule: which pixels are coded in which step.
        steps: number of steps.
        rung: number of the base code among those that the network knows.
    """

    def __init__(
        self,
        network: nn.Module,
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
            observer: called after each tile of each step.
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
        largest_stride = getattr(self.network, "largest_stride", 1)
        strides = partition.strides_of_steps(largest_stride).tolist()
        lattice = Lattice(height, width, strides[0])
        device = next(self.network.parameters()).device
        base = torch.from_numpy(bases).permute(0, 3, 1, 2).float().contiguous().to(device)
        canvas = torch.zeros_like(base)  # what both sides know
        known = torch.zeros(batch, 1, height, width, dtype=torch.float32, device=device)
        rung = torch.full((batch,), self.rung, device=device)
        flat = None if images is None else images.reshape(batch, -1, 3)
        recurrent = getattr(self.network, "recurrent", False) and height * width <= REMEMBERED
        features: dict[int, Tensor] = {}  # of the tiles
        for step, stride in enumerate(strides):
            if stride != lattice.stride:
                lattice = Lattice(height, width, stride)
            given = [x[..., ::stride, ::stride] for x in (canvas, base, known)]
            coded = []
            for number, (tile, here) in enumerate(lattice.shares(partition.due(step))):
                if not len(here) and not recurrent:
                    continue
                due = torch.from_numpy(tile.place(lattice.place(here), lattice.width)).to(device)
                mixture, last = self.network(
                    *(tile.of(x) for x in given), features.get(number), stride, rung, due
                )
                if recurrent:
                    features[number] = last
                if done is not None and step >= done:
                    pixels = mixture.expectation().round().byte().cpu().numpy()
                else:
                    truths = [None] * batch if flat is None else flat.take(here, axis=1)
                    rows = zip(coders, integer_parameters(mixture), truths, strict=True)
                    pixels = np.stack([coder.code(*row) for coder, *row in rows])
                coded.append((here, pixels))
                if observer is not None:
                    observer(step, here, mixture, torch.from_numpy(pixels).float().to(device))
            for here, pixels in coded:
                index = torch.from_numpy(here).to(device)
                values = torch.from_numpy(pixels).float().to(device)
                canvas.flatten(2)[:, :, index] = values.transpose(1, 2)
                known.flatten(2)[:, :, index] = 1
        return canvas.permute(0, 2, 3, 1).to(torch.uint8).contiguous().cpu().numpy()


def cut_into_tiles(height: int, width: int) -> tuple[list[Tile], np.ndarray]:
    """Tiles of about equal size, aligned, at most `TILE` a side, in reading order, with halos.

    Returns:
        The tiles, and the number of the tile that codes each pixel, int32 (H·W,).
    """
    rows, columns = -(-height // TILE), -(-width // TILE)
    row = np.arange(height) // ALIGNED * rows // -(-height // ALIGNED)
    column = np.arange(width) // ALIGNED * columns // -(-width // ALIGNED)
    tops, lefts = np.searchsorted(row, range(rows + 1)), np.searchsorted(column, range(columns + 1))
    tiles = [
        Tile(
            max(0, int(tops[y]) - HALO),
            min(height, int(tops[y + 1]) + HALO),
            max(0, int(lefts[x]) - HALO),
            min(width, int(lefts[x + 1]) + HALO),
        )
        for y in range(rows)
        for x in range(columns)
    ]
    return tiles, (row[:, None] * columns + column).astype(np.int32).ravel()


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

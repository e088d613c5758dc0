"""Estimators that process the whole image in every step, such as RNAN.

An image larger than a tile is processed tile by tile, to bound the memory. Each tile includes a
halo of the neighbouring pixels. Every step covers the whole image before the next step begins, so
the same pixels are known inside and outside a tile's edge.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from italic.models.likelihood import Mixture
from italic.models.network import Network
from italic.schedule import Partition

TILE = 192  # side of a tile in pixels
HALO = 16  # width in pixels of the border around a tile that is an input too
# Tiles and crops begin at multiples of this number of pixels. The pattern of known pixels then has
# the same phase in a crop as in training, which saves 1 to 2 % of the bits.
ALIGNED = 16
CACHED_PIXELS = 2**20  # largest image for which the features of a recurrent network are kept


class StepNetwork(Network):
    """An estimator that processes the image and the mask of its known pixels in every step.

    A subclass has a `forward` with the arguments of `RNAN.forward`. If all known and due pixels lie
    on a lattice of a stride up to `largest_stride`, the network receives this lattice as a separate
    image.
    """

    def estimates(
        self,
        image: Tensor,
        base: Tensor,
        partition: Partition,
        pixels: np.ndarray,
        rung: int = 0,
        memory: dict[Any, Tensor] | None = None,
    ) -> Iterator[tuple[np.ndarray, Mixture]]:
        """As `Network.estimates`, tile by tile; `memory` caches a recurrent network's features."""
        memory = {} if memory is None else memory
        height, width = partition.height, partition.width
        recurrent = self.recurrent and height * width <= CACHED_PIXELS
        rungs = torch.full((len(image),), rung, device=image.device)
        strides = partition.strides_of_steps(self.largest_stride)
        steps = partition.step_of_pixel.ravel()[pixels]
        for step in np.unique(steps):
            stride = int(strides[step])
            lattice = Lattice(height, width, stride)
            known = torch.from_numpy(partition.step_of_pixel < step).to(image.device)
            given = [
                x[:, ::stride, ::stride].permute(0, 3, 1, 2).float()
                for x in (image, base, known[None, ..., None].expand(len(image), -1, -1, -1))
            ]
            for number, (tile, in_tile) in enumerate(lattice.shares(pixels[steps == step])):
                if not len(in_tile) and not recurrent:
                    continue
                due = torch.from_numpy(tile.place(lattice.place(in_tile), lattice.width))
                mixture, last = self(
                    *(tile.of(x) for x in given),
                    memory.get(number),
                    stride,
                    rungs,
                    due.to(image.device),
                )
                if recurrent:
                    memory[number] = last
                yield in_tile, mixture


class Tile(NamedTuple):
    """The bounds in pixels of a crop: a tile with its halo."""

    top: int
    bottom: int
    left: int
    right: int

    def of(self, x: Tensor) -> Tensor:
        """The crop of a tensor (B, C, H, W), as a view."""
        return x[..., self.top : self.bottom, self.left : self.right]

    def place(self, flat: np.ndarray, width: int) -> np.ndarray:
        """Convert flat indices in an image of the given width to those in the crop, int64 (n,)."""
        y, x = np.divmod(flat, width)
        return (y - self.top) * (self.right - self.left) + x - self.left


class Lattice:
    """Every s-th pixel of every s-th row of an image, divided into tiles as a separate image.

    Args:
        height: height of the image.
        width: width of the image.
        stride: s.
    """

    def __init__(self, height: int, width: int, stride: int) -> None:
        self.stride, self.image_width, self.width = stride, width, -(-width // stride)
        self.tiles, self.tile_of_place = cut_into_tiles(-(-height // stride), self.width)

    def place(self, flat: np.ndarray) -> np.ndarray:
        """Convert flat indices in the image to flat indices on the lattice, int64 (n,)."""
        y, x = np.divmod(flat, self.image_width)
        return y // self.stride * self.width + x // self.stride

    def shares(self, due: np.ndarray) -> Iterator[tuple[Tile, np.ndarray]]:
        """Each tile with its share of the due pixels, flat indices in the image, int64 (n,)."""
        tile = self.tile_of_place[self.place(due)]
        ends = np.cumsum(np.bincount(tile, minlength=len(self.tiles)))
        due = due[np.argsort(tile, kind="stable")]
        return zip(self.tiles, np.split(due, ends[:-1]), strict=True)


def cut_into_tiles(height: int, width: int) -> tuple[list[Tile], np.ndarray]:
    """Divide an image into aligned tiles of about equal size, at most `TILE` pixels per side.

    Returns:
        The tiles with their halos, in raster order, and the index of each pixel's tile,
        int32 (H·W,).
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

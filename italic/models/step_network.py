"""Estimators that are applied to the whole picture in every step, such as RNAN.

Pictures larger than a tile are estimated tile by tile, with what is known of the neighbours around
each: memory stays bounded, and as every step goes over the whole picture before the next one
begins, a tile's edge knows as much on its outer side as on its inner one.
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

TILE = 192  # pixels a side
HALO = 16  # pixels around a tile that its estimator sees
# Tiles and crops begin at multiples of this: the known pixels' pattern then lies in a crop as it
# lay in training, which is worth 1 to 2 % of the bits.
ALIGNED = 16
REMEMBERED = 2**20  # pixels; a recurrent network's features of larger pictures are not kept


class StepNetwork(Network):
    """An estimator that is applied to the picture and the mask of its known pixels in every step.

    A subclass has a `forward` like that of `RNAN`. While all pixels that are known or due lie on a
    coarse lattice, up to `largest_stride`, the lattice is given to it as a picture of its own.
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
        """As `Network.estimates`, tile by tile; the memory holds a recurrent network's features."""
        memory = {} if memory is None else memory
        height, width = partition.height, partition.width
        recurrent = self.recurrent and height * width <= REMEMBERED
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
            for number, (tile, here) in enumerate(lattice.shares(pixels[steps == step])):
                if not len(here) and not recurrent:
                    continue
                due = torch.from_numpy(tile.place(lattice.place(here), lattice.width))
                mixture, last = self(
                    *(tile.of(x) for x in given),
                    memory.get(number),
                    stride,
                    rungs,
                    due.to(image.device),
                )
                if recurrent:
                    memory[number] = last
                yield here, mixture


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

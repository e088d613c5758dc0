"""Whole images of different sizes, and random square crops of them for training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset

from italic.datamodules.cached import key_of_files, made_once

FORMAT = "whole images 1"  # part of the key: a new layout never meets an old cache


def whole_images(
    files: Sequence[Path], read: Callable[[Path], np.ndarray], cache_dir: Path
) -> list[np.ndarray]:
    """The images of files, uint8 (H, W, 3) each, decoded once and memory-mapped from then on.

    Args:
        files: their sizes and times of change are part of the cache's key.
        read: decodes a file; what it raises leaves no cache behind.
        cache_dir: where the pixels are kept, 3 bytes each.

    Raises:
        OSError: no room for the cache.
    """

    def make(folder: Path) -> None:
        sizes = []
        with ThreadPoolExecutor() as pool, open(folder / "pixels", "wb") as kept:
            decoded = pool.map(read, files)
            for image in track(decoded, "reading images", total=len(files), transient=True):
                kept.write(np.ascontiguousarray(image).data)
                sizes.append(image.shape[:2])
        np.save(folder / "sizes.npy", np.array(sizes))

    folder = made_once(cache_dir / key_of_files(FORMAT, files), make)
    sizes = np.load(folder / "sizes.npy")
    # Views of the plain array: those of np.memmap are slow to make.
    pixels = np.asarray(np.memmap(folder / "pixels", np.uint8, "r"))
    pieces = np.split(pixels, np.cumsum(3 * sizes.prod(1))[:-1])
    return [piece.reshape(*size, 3) for piece, size in zip(pieces, sizes, strict=True)]


class RandomCrops(Dataset[int]):
    """Square crops of images, drawn anew each time by PyTorch's default generator.

    Every crop of every image is as likely as any other. As many make an epoch as fit into the
    images without overlap, by their pixels. An index says nothing but that one is wanted.

    Args:
        images: uint8 (H, W, 3) each, of different sizes, no side below `size`.
        size: side of a crop in pixels.
        reduced: probability of a crop that is 1 to 2 times as large (or as large as the image
            allows) and resized to `size` with a Lanczos filter.
    """

    def __init__(self, images: Sequence[np.ndarray], size: int, reduced: float = 0.0) -> None:
        self.images, self.size, self.reduced = images, size, reduced
        self.sides = torch.tensor([image.shape[:2] for image in images])
        self.ends = (self.sides - size + 1).prod(1).cumsum(0)  # of each image's crops, counted on
        self.number = max(1, int(self.sides.prod(1).sum()) // size**2)

    def __len__(self) -> int:
        """Crops in an epoch."""
        return self.number

    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        """As many crops as there are indices, uint8 (B, 3, size, size)."""
        count = len(indices)
        which = torch.searchsorted(
            self.ends, torch.randint(int(self.ends[-1]), (count,)), right=True
        )
        limits = self.sides[which]
        factor = 1 + torch.rand(count) * (torch.rand(count) < self.reduced)
        side = torch.minimum((self.size * factor).round().long(), limits.amin(1))
        room = (limits - side[:, None] + 1).double()
        corner = (torch.rand(count, 2, dtype=torch.float64) * room).long()
        crops = np.empty((count, self.size, self.size, 3), np.uint8)
        drawn = zip(which.tolist(), side.tolist(), corner.tolist(), strict=True)
        for place, (image, length, (y, x)) in enumerate(drawn):
            window = self.images[image][y : y + length, x : x + length]
            crops[place] = window if length == self.size else _resized(window, self.size)
        return torch.from_numpy(np.ascontiguousarray(crops.transpose(0, 3, 1, 2)))


def _resized(window: np.ndarray, size: int) -> np.ndarray:
    image = Image.fromarray(window).resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(image)


def mirror_at_random(pictures: Sequence[Tensor], transpose: bool = False) -> None:
    """Mirror pictures left-right in place, each with probability 1/2, all arrays the same way.

    Args:
        pictures: arrays (B, C, H, W) of the same B, H and W on one device.
        transpose: also mirror up-down and swap rows and columns: each of the square's eight
            symmetries has the same probability. H must be W.
    """
    count, device = len(pictures[0]), pictures[0].device
    for axes in ((-1,), (-2,), (-1, -2))[: 3 if transpose else 1]:
        chosen = torch.rand(count, device=device) < 0.5
        for array in pictures:
            some = array[chosen]
            array[chosen] = some.flip(axes) if len(axes) == 1 else some.transpose(*axes)

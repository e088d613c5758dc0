"""Full images of different sizes, and square parts of them: tiles, random and central crops."""

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

from italic.datamodules.cached import key_of_files
from italic.datamodules.images import alterations
from italic.datamodules.images.files import image_cache

FORMAT = "whole images 1"  # part of the cache key, so that a new layout ignores old caches


def whole_images(
    files: Sequence[Path], read: Callable[[Path], np.ndarray], cache_dir: Path
) -> list[np.ndarray]:
    """The images of files, uint8 (H, W, 3) each, decoded once and memory-mapped from a cache.

    Args:
        files: image files; the cache key includes their sizes and modification times.
        read: function that decodes a file; if it raises an exception, no cache is left.
        cache_dir: folder of the cache, which has 3 bytes per pixel.

    Raises:
        DataError: the disk has no space for the cache, or `read` raises it.
    """

    def make(folder: Path) -> None:
        sizes = []
        with ThreadPoolExecutor() as pool, open(folder / "pixels", "wb") as file:
            decoded = pool.map(read, files)
            for image in track(decoded, "reading images", total=len(files), transient=True):
                file.write(np.ascontiguousarray(image).data)
                sizes.append(image.shape[:2])
        np.save(folder / "sizes.npy", np.array(sizes))

    folder = image_cache(cache_dir / key_of_files(FORMAT, files), make)
    sizes = np.load(folder / "sizes.npy")
    # A plain array, because views of np.memmap are slow to create.
    pixels = np.asarray(np.memmap(folder / "pixels", np.uint8, "r"))
    pieces = np.split(pixels, np.cumsum(3 * sizes.prod(1))[:-1])
    return [piece.reshape(*size, 3) for piece, size in zip(pieces, sizes, strict=True)]


def centre_crops(images: Sequence[np.ndarray], size: int = 64) -> np.ndarray:
    """Crops from the centres of images, which show what is in them.

    Args:
        images: uint8 (H, W, 3) each, of different sizes.
        size: side of a crop in pixels, at most; smaller if an image is smaller.

    Returns:
        uint8 (N, side, side, 3).
    """
    side = min(size, *(min(image.shape[:2]) for image in images))
    crops = []
    for image in images:
        top, left = ((length - side) // 2 for length in image.shape[:2])
        crops.append(image[top : top + side, left : left + side])
    return np.stack(crops)


def tiles(image: np.ndarray, size: int, stride: int) -> np.ndarray:
    """All size×size tiles of an image, uint8 (H, W, 3), at multiples of the stride.

    Returns:
        uint8 (N, size, size, 3).
    """
    windows = np.lib.stride_tricks.sliding_window_view(image, (size, size), axis=(0, 1))
    return windows[::stride, ::stride].transpose(0, 1, 3, 4, 2).reshape(-1, size, size, 3)


class RandomCrops(Dataset[int]):
    """Random square crops of images, drawn by PyTorch's default generator.

    All crop positions of all images have the same probability. The number of crops in an epoch is
    the number of pixels of all images divided by the pixels of a crop. The values of the indices
    are ignored.

    Args:
        images: uint8 (H, W, 3) each, of different sizes, no side below `size`.
        size: side of a crop in pixels.
        reduced: probability of a larger crop that is resized to `size` with a Lanczos filter; it is
            1 to 2 times larger, but at most as large as the image.
        altered: probability that a crop is altered, see `italic.datamodules.images.alterations`.
    """

    def __init__(
        self,
        images: Sequence[np.ndarray],
        size: int,
        reduced: float = 0.0,
        altered: float = 0.0,
    ) -> None:
        self.images, self.size, self.reduced, self.altered = images, size, reduced, altered
        self.sides = torch.tensor([image.shape[:2] for image in images])
        self.ends = (self.sides - size + 1).prod(1).cumsum(0)  # cumulative number of crop positions
        self.number = max(1, int(self.sides.prod(1).sum()) // size**2)

    def __len__(self) -> int:
        """Number of crops in an epoch."""
        return self.number

    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        """One random crop per index, uint8 (B, 3, size, size)."""
        count = len(indices)
        image_index = torch.searchsorted(
            self.ends, torch.randint(int(self.ends[-1]), (count,)), right=True
        )
        limits = self.sides[image_index]
        factor = 1 + torch.rand(count) * (torch.rand(count) < self.reduced)
        side = torch.minimum((self.size * factor).round().long(), limits.amin(1))
        positions = (limits - side[:, None] + 1).double()
        corner = (torch.rand(count, 2, dtype=torch.float64) * positions).long()
        # Without alterations, no numbers are drawn for them: the crops of a seed stay the same.
        alter = (torch.rand(count) < self.altered).tolist() if self.altered else [False] * count
        crops = np.empty((count, self.size, self.size, 3), np.uint8)
        drawn = zip(image_index.tolist(), side.tolist(), corner.tolist(), strict=True)
        for row, (image, length, (y, x)) in enumerate(drawn):
            window = self.images[image][y : y + length, x : x + length]
            crop = window if length == self.size else _resized(window, self.size)
            crops[row] = alterations.altered(crop) if alter[row] else crop
        return torch.from_numpy(np.ascontiguousarray(crops.transpose(0, 3, 1, 2)))


def _resized(window: np.ndarray, size: int) -> np.ndarray:
    image = Image.fromarray(window).resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(image)


def mirror_at_random(arrays: Sequence[Tensor], transpose: bool = False) -> None:
    """Mirror images left-right in place, each with probability 1/2.

    Args:
        arrays: arrays (B, C, H, W) of the same B, H and W on one device. Image i is mirrored in all
            arrays or in none.
        transpose: also mirror up-down and swap rows with columns, so that each of the square's
            eight symmetries has the same probability. H must equal W.
    """
    count, device = len(arrays[0]), arrays[0].device
    for axes in ((-1,), (-2,), (-1, -2))[: 3 if transpose else 1]:
        chosen = torch.rand(count, device=device) < 0.5
        for array in arrays:
            subset = array[chosen]
            array[chosen] = subset.flip(axes) if len(axes) == 1 else subset.transpose(*axes)

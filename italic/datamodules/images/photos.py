"""The photographs of scikit-image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import skimage
from PIL import Image

from italic.datamodules.cached import key_of_files
from italic.datamodules.images.crops import tiles
from italic.datamodules.images.files import read_rgb
from italic.datamodules.images.sources import Split
from italic.errors import SettingError


class Photos:
    """Tiles of scikit-image's colour photographs, which need no download.

    The training images are astronaut, coffee, motorcycle, stained tissue and deep field, at full
    and at half size, with tiles that overlap by half. The validation image is the rocket, and the
    test image is the cat.

    Args:
        size: side of a tile in pixels.
        scale: factor by which the photographs are resized first, from 1/16 to 1.

    Raises:
        SettingError: a number is out of range; the side of a tile is at most 256 · `scale`.
    """

    PHOTOGRAPHS: ClassVar[dict[Split, Sequence[str]]] = {
        "train": (
            "astronaut.png",
            "coffee.png",
            "motorcycle_left.png",
            "ihc.png",
            "hubble_deep_field.jpg",
        ),
        "validation": ("rocket.jpg",),
        "test": ("chelsea.png",),
    }

    def __init__(self, size: int = 32, scale: float = 1.0) -> None:
        if not 1 / 16 <= scale <= 1:
            raise SettingError(f"the scale of the photographs must be from 1/16 to 1; got {scale}")
        if not 1 <= size <= 256 * scale:
            raise SettingError(
                f"the size of a tile must be from 1 to {int(256 * scale)} pixels; got {size}"
            )
        self.size, self.scale = size, scale

    def key(self, split: Split) -> str:
        """Digest of the settings and of the state of the photographs' files."""
        return key_of_files(f"Photos 1 {split} {self.size} {self.scale}", self._files(split))

    def _files(self, split: Split) -> list[Path]:
        folder = Path(skimage.__file__).parent / "data"
        return [folder / name for name in self.PHOTOGRAPHS[split]]

    def load(self, split: Split) -> np.ndarray:
        """The tiles of a split, uint8 (N, size, size, 3), shuffled.

        Raises:
            DataError: scikit-image lacks a photograph.
        """
        photographs = [_resized(read_rgb(path), self.scale) for path in self._files(split)]
        stride = self.size
        if split == "train":
            halves = [
                np.asarray(Image.fromarray(photograph).reduce(2)) for photograph in photographs
            ]
            photographs, stride = photographs + halves, max(1, self.size // 2)
        large = [item for item in photographs if min(item.shape[:2]) >= self.size]
        found = np.concatenate([tiles(item, self.size, stride) for item in large])
        return found[np.random.default_rng(0).permutation(len(found))]


def _resized(image: np.ndarray, scale: float) -> np.ndarray:
    """Resize an image, uint8 (H, W, 3), by a factor."""
    if scale == 1:
        return image
    height, width = (round(side * scale) for side in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))

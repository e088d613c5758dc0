"""What the data module needs of a source of images."""

from __future__ import annotations

from typing import Literal, Protocol, cast

import numpy as np

from italic.datamodules.images.crops import RandomCrops

Split = Literal["train", "validation", "test", "all"]  # all: of an image folder, to evaluate it


class ImageSource(Protocol):
    """A source of images of one size in three splits."""

    def load(self, split: Split) -> np.ndarray:
        """The images of a split, uint8 (N, H, W, 3), N ≥ 1, identical in every call."""


class KeyedSource(ImageSource, Protocol):
    """A source that can name the images of a split without loading them, for cache keys."""

    def key(self, split: Split) -> str:
        """A digest of all that determines the images of `load`: settings and state of files."""


class WholeSource(ImageSource, Protocol):
    """A source of full images of different sizes; `load` returns parts of them of one size."""

    def whole(self, split: Split) -> list[np.ndarray]:
        """The full images of a split, uint8 (H, W, 3) each."""

    def names(self, split: Split) -> list[str]:
        """The names of the images of `whole`."""


class CropSource(WholeSource, Protocol):
    """A source of full images for training on random crops; `load` returns fixed crops."""

    crop: int | None  # side of the crops in pixels; None if the source yields no random crops

    def random_crops(self, limit: int = 0) -> RandomCrops:
        """Random crops of the training images, or of the first `limit` of them if not 0."""


def key_of(source: ImageSource, split: Split) -> str | None:
    """The key of a split's images if the source has keys, else None.

    It includes class and split, since keys of user-defined sources may leave them out.
    """
    if not hasattr(source, "key"):
        return None
    kind = type(source)
    return f"{kind.__module__}.{kind.__qualname__} {split} {cast(KeyedSource, source).key(split)}"


def whole_of(source: ImageSource) -> WholeSource | None:
    """The source if it has full images of different sizes, else None."""
    return cast(WholeSource, source) if hasattr(source, "whole") else None


def crops_of(source: ImageSource) -> CropSource | None:
    """The source if training uses random crops of its images, else None."""
    return cast(CropSource, source) if getattr(source, "crop", None) is not None else None

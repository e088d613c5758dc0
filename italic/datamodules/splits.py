"""The images of a training: a source whose splits may be limited."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from italic.datamodules.images.crops import RandomCrops
from italic.datamodules.images.sources import CropSource, ImageSource, Split, crops_of, key_of
from italic.errors import check_range


@dataclass(frozen=True)
class Splits:
    """An image source with limits of its splits.

    Args:
        source: source of the images.
        train_limit: number of training images, the first ones of the split (full images, if random
            crops are used); 0 for all.
        eval_limit: number of validation and of test images, the first ones of the split; 0 for all.
        validate_on_train: whether validation uses the training images, as a test of overfitting;
            excludes random crops.

    Raises:
        SettingError: a limit is negative.
    """

    source: ImageSource
    train_limit: int = 0
    eval_limit: int = 0
    validate_on_train: bool = False

    def __post_init__(self) -> None:
        check_range("datamodule.train_limit", self.train_limit, 0)
        check_range("datamodule.eval_limit", self.eval_limit, 0)

    @property
    def crops(self) -> CropSource | None:
        """The source if training uses random crops of its images, else None."""
        return None if self.validate_on_train else crops_of(self.source)

    def load(self, split: Split) -> np.ndarray:
        """The images of a split up to its limit, uint8 (N, H, W, 3), N ≥ 1."""
        return self.source.load(self._loaded(split))[: self._limit(split) or None]

    def key(self, split: Split) -> str | None:
        """A digest of all that determines the images of `load`; None if the source has no keys."""
        key = key_of(self.source, self._loaded(split))
        return key and f"{key} {self._limit(split)}"

    def _loaded(self, split: Split) -> Split:
        return "train" if self.validate_on_train and split == "validation" else split

    def _limit(self, split: Split) -> int:
        return self.train_limit if split == "train" else self.eval_limit

    def random_crops(self) -> RandomCrops | None:
        """Random crops of the training images; None if training uses no random crops."""
        return self.crops.random_crops(self.train_limit) if self.crops else None

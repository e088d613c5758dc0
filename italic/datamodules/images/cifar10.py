"""CIFAR-10."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np

from italic.datamodules.cached import key_of_files
from italic.datamodules.images.crops import whole_images
from italic.datamodules.images.files import DataError, images_below, read_rgb
from italic.datamodules.images.sources import Split
from italic.errors import check_range


class CIFAR10:
    """CIFAR-10, 32×32 pixels: 50,000 training and validation images, 10,000 test images.

    The images are read from torchvision's files (downloaded if missing), or from class folders
    `train/<class>/*.png` and `test/<class>/*.png`. The order within a split is random with a fixed
    seed, so the first images are a random sample of all classes.

    Args:
        data_dir: folder of the data set.
        validation: number of validation images, which are taken from the training set.
        seed: seed of the split and of the order.
        download: whether torchvision downloads missing files.
        cache_dir: folder of the cache of the decoded images of class folders.

    Raises:
        SettingError: a number is out of range.
    """

    TRAINING_IMAGES = 50_000

    def __init__(
        self,
        data_dir: str = "data/cifar10",
        validation: int = 5000,
        seed: int = 0,
        download: bool = True,
        cache_dir: str = "cache/images",
    ) -> None:
        check_range("validation", validation, 1, self.TRAINING_IMAGES - 1)
        check_range("seed", seed, 0)
        self.data_dir = Path(data_dir)
        self.validation, self.seed, self.download = validation, seed, download
        self.cache_dir = Path(cache_dir)

    def load(self, split: Split) -> np.ndarray:
        """The images of a split, uint8 (N, 32, 32, 3).

        Raises:
            DataError: the data set is missing and can't be downloaded, it is too small, or the disk
                has no space for the cache.
        """
        images = self._read("test" if split == "test" else "train")
        if split != "test" and len(images) <= self.validation:
            raise DataError(
                f"{self.validation} validation images would take all {len(images)} of "
                f"'{self.data_dir}': expected fewer, datamodule.images.validation=…"
            )
        # Sorted by content first, so that the order does not depend on file names.
        digests = [hashlib.sha256(image).digest() for image in images]
        order = np.array(sorted(range(len(images)), key=digests.__getitem__))
        order = np.random.default_rng(self.seed).permutation(order)
        if split == "validation":
            order = order[: self.validation]
        elif split == "train":
            order = order[self.validation :]
        return images[order]

    def key(self, split: Split) -> str:
        """Digest of the settings and of the state of the files that `load` reads.

        Raises:
            DataError: the data set is missing and can't be downloaded.
        """
        part: Literal["train", "test"] = "test" if split == "test" else "train"
        settings = f"CIFAR10 1 {split} {self.validation} {self.seed}"
        folder = self.data_dir / part
        if folder.is_dir():
            return key_of_files(settings, images_below(folder))
        # torchvision compares its files with fixed checksums, so their content is known.
        if not (self.data_dir / "cifar-10-batches-py").is_dir():
            self._torchvision(part)
        return key_of_files(f"{settings} torchvision", [])

    def _read(self, part: Literal["train", "test"]) -> np.ndarray:
        folder = self.data_dir / part
        if folder.is_dir():
            images = whole_images(images_below(folder), read_rgb, self.cache_dir)
            if len({image.shape for image in images}) > 1:
                raise DataError(
                    f"the images in '{folder}' differ in size: expected the images of CIFAR-10, or "
                    "datamodule=folder for other images"
                )
            return np.stack(images)
        return self._torchvision(part).data

    def _torchvision(self, part: Literal["train", "test"]) -> Any:
        from torchvision import datasets

        try:
            return datasets.CIFAR10(self.data_dir, train=part == "train", download=self.download)
        except Exception as error:
            raise DataError(
                f"CIFAR-10 is not in '{self.data_dir}' and could not be downloaded there: put "
                "torchvision's cifar-10-batches-py or the class folders train/<class>/*.png and "
                "test/<class>/*.png into this folder (datamodule.images.data_dir=…), or train on "
                "the installed photographs with datamodule=photos"
            ) from error

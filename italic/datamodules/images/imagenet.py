"""Small versions of ImageNet: downsampled ImageNet at 32×32 and 64×64 pixels, and Tiny ImageNet.

The images are decoded once and cached as raw bytes. Loading memory-maps the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from rich.progress import track

from italic.datamodules.cached import key_of_files
from italic.datamodules.images.batch_files import read_batch
from italic.datamodules.images.files import DataError, image_cache, images_below, read_rgb
from italic.datamodules.images.sources import Split
from italic.errors import check_range

FORMAT = "images 1"  # part of the cache key, so that a new layout ignores old caches
CHUNK = 4096  # images that are reordered and written together


class DownsampledImageNet:
    """ImageNet at 32×32 or 64×64 pixels: 1,281,167 training and validation, 50,000 test images.

    The files are those of the data set, `train_data_batch_1` to `_10` and `val_data`, as .npz or
    pickled; .npz is preferred. `val_data` is the test set. The validation images are a seeded
    random sample with the same number from each training file. Each file is read once; one file is
    in memory at a time.

    Args:
        data_dir: folder of the files.
        size: side of the images in pixels.
        validation: number of validation images, which are taken from the training files.
        seed: seed of the sample and of the order of the images within a file.
        cache_dir: folder of the image cache, which is as large as the files.

    Raises:
        SettingError: a number is out of range.
    """

    FILES: ClassVar[dict[str, Sequence[str]]] = {
        "train": [f"train_data_batch_{number}" for number in range(1, 11)],
        "test": ["val_data"],
    }

    def __init__(
        self,
        data_dir: str = "data/imagenet32",
        size: int = 32,
        validation: int = 10_000,
        seed: int = 0,
        cache_dir: str = "cache/images",
    ) -> None:
        check_range("size", size, 1)
        check_range("validation", validation, 1)
        check_range("seed", seed, 0)
        self.data_dir, self.size, self.cache_dir = Path(data_dir), size, Path(cache_dir)
        self.validation, self.seed = validation, seed

    def load(self, split: Split) -> np.ndarray:
        """The images of a split, uint8 (N, size, size, 3), memory-mapped.

        Raises:
            DataError: a file is missing or invalid, or the disk has no space for the cache.
        """
        part = self._part(split)
        files = self._files(split)

        def make(folder: Path) -> None:
            random = np.random.default_rng(self.seed)
            for index, path in enumerate(track(files, f"reading {part} images", transient=True)):
                drawn = 0
                if part == "train":
                    drawn = self.validation // len(files) + (index < self.validation % len(files))
                self._add(folder, path, part, drawn, random)

        return _cached(self.cache_dir, files, self._settings(split), make, split, self.size)

    def key(self, split: Split) -> str:
        """Digest of the settings and of the state of the files that `load` reads.

        Raises:
            DataError: a file is missing.
        """
        return key_of_files(f"{FORMAT} {split} {self._settings(split)}", self._files(split))

    @staticmethod
    def _part(split: Split) -> Literal["train", "test"]:
        return "test" if split == "test" else "train"

    def _files(self, split: Split) -> list[Path]:
        return [self._file(name) for name in self.FILES[self._part(split)]]

    def _settings(self, split: Split) -> str:
        return f"{self.size} {0 if split == 'test' else self.validation} {self.seed}"

    def _file(self, name: str) -> Path:
        for path in (self.data_dir / f"{name}.npz", self.data_dir / name):
            if path.is_file():
                return path
        raise DataError(
            f"'{self.data_dir / name}' is missing (or the same as .npz): expected the files "
            f"train_data_batch_1 to train_data_batch_10 and val_data of ImageNet at {self.size}×"
            f"{self.size} pixels in this folder (datamodule.images.data_dir=…), which registered "
            "users can download from image-net.org under Downsampled"
        )

    def _add(
        self, folder: Path, path: Path, part: str, drawn: int, random: np.random.Generator
    ) -> None:
        """Append the images of a file to its split, and `drawn` of them to the validation split."""
        data = read_batch(path, self.size)
        if drawn >= len(data):
            raise DataError(
                f"{self.validation} validation images would take all {len(data)} of '{path}': "
                "expected fewer, datamodule.images.validation=…"
            )
        order = random.permutation(len(data))
        pieces = {"validation": order[:drawn], part: order[drawn:]}
        for name, rows in pieces.items():
            if not len(rows):
                continue
            with open(folder / name, "ab") as file:
                for start in range(0, len(rows), CHUNK):
                    planes = data[rows[start : start + CHUNK]].reshape(-1, 3, self.size, self.size)
                    file.write(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)).data)


class TinyImageNet:
    """Tiny ImageNet, 64×64 pixels: 100,000 training, 10,000 validation and 10,000 test images.

    The images are the JPEG files in the data set's folders `train`, `val` and `test`, in a seeded
    random order.

    Args:
        data_dir: the folder tiny-imagenet-200.
        seed: seed of the random order.
        cache_dir: folder of the cache of decoded images, 1.5 gigabytes.

    Raises:
        SettingError: the seed is negative.
    """

    SIZE = 64
    FOLDERS: ClassVar[dict[Split, str]] = {"train": "train", "validation": "val", "test": "test"}

    def __init__(
        self,
        data_dir: str = "data/tiny-imagenet-200",
        seed: int = 0,
        cache_dir: str = "cache/images",
    ) -> None:
        check_range("seed", seed, 0)
        self.data_dir, self.seed, self.cache_dir = Path(data_dir), seed, Path(cache_dir)

    def load(self, split: Split) -> np.ndarray:
        """The images of a split, uint8 (N, 64, 64, 3), memory-mapped.

        Raises:
            DataError: the folder is missing, a file is not an image of 64×64 pixels, or the disk
                has no space for the cache.
        """
        files = self._files(split)

        def make(folder: Path) -> None:
            shuffled = np.random.default_rng(self.seed).permutation(len(files))
            with ThreadPoolExecutor() as pool, open(folder / split, "wb") as file:
                images = pool.map(self._read, [files[index] for index in shuffled])
                label = f"reading {split} images"
                for image in track(images, label, total=len(files), transient=True):
                    file.write(np.ascontiguousarray(image).data)

        return _cached(self.cache_dir, files, f"{self.seed}", make, split, self.SIZE)

    def key(self, split: Split) -> str:
        """Digest of the settings and of the state of the files that `load` reads.

        Raises:
            DataError: the folder is missing.
        """
        return key_of_files(f"{FORMAT} TinyImageNet {split} {self.seed}", self._files(split))

    def _files(self, split: Split) -> list[Path]:
        source = self.data_dir / self.FOLDERS[split]
        if not source.is_dir():
            raise DataError(
                f"'{source}' is missing: expected the folders train, val and test of Tiny ImageNet "
                f"in '{self.data_dir}' (datamodule.images.data_dir=…), unpacked from "
                "tiny-imagenet-200.zip of Stanford's course CS231n"
            )
        return images_below(source)

    def _read(self, path: Path) -> np.ndarray:
        image = read_rgb(path)
        if image.shape != (self.SIZE, self.SIZE, 3):
            raise DataError(
                f"'{path}' has {image.shape[1]}×{image.shape[0]} pixels instead of the {self.SIZE}×"
                f"{self.SIZE} of Tiny ImageNet: use datamodule=folder for images of other sizes"
            )
        return image


def _cached(
    cache_dir: Path,
    files: Sequence[Path],
    settings: str,
    make: Callable[[Path], None],
    split: Split,
    size: int,
) -> np.ndarray:
    """The images of a split, memory-mapped from the cache of these files and settings."""
    folder = image_cache(cache_dir / key_of_files(f"{FORMAT}\n{settings}", files), make)
    return np.memmap(folder / split, np.uint8, "r").reshape(-1, size, size, 3)

"""Folders of images of any size."""

from __future__ import annotations

import csv
import hashlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from italic.datamodules.cached import key_of_files
from italic.datamodules.images.crops import RandomCrops, tiles, whole_images
from italic.datamodules.images.files import DataError, images_below, read_rgb
from italic.datamodules.images.sources import Split
from italic.errors import SettingError, check_range

SPLIT_FOLDERS = ("train", "validation", "val", "test")
SOURCES = "sources.csv"  # in an image folder: where its images are from
CREDITS = "source", "author", "licence"  # its columns beside file

log = logging.getLogger(__name__)


class Folder:
    """All images in a directory tree, as tiles of one size or as random crops.

    If the sub-folders train, validation (or val) and test exist, they are the splits. Otherwise a
    hash of each file's name selects its split, so adding or removing a file does not change the
    split of the others, except in folders so small that a split would be empty.

    Args:
        path: root of the directory tree.
        size: side of a tile in pixels; images with a smaller side are skipped.
        crop: side of the random crops in pixels, which replace tiles in training; validation then
            uses adjacent fixed crops. None for tiles. Random crops need base=none.
        reduced: probability that a random crop is cut 1 to 2 times larger and downscaled to the
            crop size.
        altered: probability that a random crop is then altered in one way: to grey, tinted, with
            stretched levels, with a part replaced by one colour, or to the pixels of a JPEG file.
        validation: fraction of the files for validation, without sub-folders for the splits.
        test: fraction of the files for test, without sub-folders for the splits.
        seed: seed of the splits and of the order.
        cache_dir: folder of the cache of decoded images, 3 bytes per pixel.

    Raises:
        SettingError: a number is out of range, or `reduced` or `altered` is given without `crop`.
    """

    def __init__(
        self,
        path: str,
        size: int = 32,
        crop: int | None = None,
        reduced: float = 0.0,
        altered: float = 0.0,
        validation: float = 0.1,
        test: float = 0.1,
        seed: int = 0,
        cache_dir: str = "cache/images",
    ) -> None:
        check_range("size", size, 1)
        check_range("seed", seed, 0)
        check_range("crop", crop, 1)
        for name, probability in (("reduced", reduced), ("altered", altered)):
            check_range(name, probability, 0, 1)
            if probability and crop is None:
                raise SettingError(
                    f"{name} is a fraction of the random crops: expected a crop size too, crop=…"
                )
        if not (validation > 0 and test > 0 and validation + test < 1):
            raise SettingError(
                "validation and test must be fractions above 0 with a sum below 1; "
                f"got {validation} and {test}"
            )
        self.path, self.size, self.crop = Path(path), size, crop
        self.reduced, self.altered = reduced, altered
        self.validation, self.test, self.seed = validation, test, seed
        self.cache_dir = Path(cache_dir)

    def load(self, split: Split) -> np.ndarray:
        """The tiles of a split, or the fixed crops with `crop`, uint8 (N, size, size, 3), shuffled.

        Raises:
            DataError: the directory does not exist, has no image or no image that is large enough,
                an image can't be converted to 8-bit RGB without loss, or the disk has no space for
                the cache.
        """
        size = self.crop or self.size
        pieces = [tiles(image, size, size) for image in self._large(self.whole(split), split)]
        found = np.concatenate(pieces)
        return found[np.random.default_rng(self.seed).permutation(len(found))]

    def key(self, split: Split) -> str:
        """Digest of the settings and of the state of the files that `load` reads.

        Raises:
            DataError: as `names`.
        """
        settings = f"Folder 1 {split} {self.crop or self.size} {self.seed}"
        return key_of_files(settings, self._files(split))

    def whole(self, split: Split) -> list[np.ndarray]:
        """The images of a split, uint8 (H, W, 3) each, memory-mapped, in the files' order.

        Raises:
            DataError: as `load`, but images of any size are accepted.
        """
        return whole_images(self._files(split), read_rgb, self.cache_dir)

    def names(self, split: Split) -> list[str]:
        """Paths of the files of a split relative to the directory, in the order of `whole`.

        Raises:
            DataError: the directory does not exist, or has no image of this split.
        """
        return [path.relative_to(self.path).as_posix() for path in self._files(split)]

    def credits(self, split: Split) -> list[dict[str, str]]:
        """Source, author and licence of the images of a split, each combination once.

        They come from the file sources.csv in the directory, with the columns file (relative to the
        directory), source, author and licence. The list is empty if there is no such file.

        Raises:
            DataError: as `names`, or the file lacks a column.
        """
        path = self.path / SOURCES
        if not path.exists():
            return []
        names, found = set(self.names(split)), []
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            for row in csv.DictReader(file):
                if any(row.get(column) is None for column in ("file", *CREDITS)):
                    raise DataError(
                        f"a line of '{path}' is not complete: expected the columns file, "
                        f"{', '.join(CREDITS)}"
                    )
                credit = {column: row[column] for column in CREDITS}
                if row["file"] in names and credit not in found:
                    found.append(credit)
        return found

    def random_crops(self, limit: int = 0) -> RandomCrops:
        """Random crops of the training images, or of the first `limit` of them if not 0.

        Raises:
            DataError: as `load`.
        """
        assert self.crop is not None
        images = self.whole("train")[: limit or None]
        large = list(self._large(images, "train"))
        return RandomCrops(large, self.crop, self.reduced, self.altered)

    def _large(self, images: Iterable[np.ndarray], split: Split) -> Iterator[np.ndarray]:
        """The images that are at least as large as a tile or a crop."""
        key, size = ("size", self.size) if self.crop is None else ("crop", self.crop)
        large = small = 0
        for image in images:
            if min(image.shape[:2]) < size:
                small += 1
            else:
                large += 1
                yield image
        if small:
            log.warning("%s: skipped %d images below %d pixels", self.path, small, size)
        if not large:
            raise DataError(
                f"no {split} image in '{self.path}' has {size}×{size} pixels: expected "
                f"larger images, more files, or a smaller datamodule.images.{key}"
            )

    def _files(self, split: Split) -> list[Path]:
        if not self.path.is_dir():
            problem = "is not a folder" if self.path.exists() else "does not exist"
            raise DataError(
                f"the image folder '{self.path}' {problem}: expected a folder with images, "
                "datamodule.images.path=…"
            )
        if split == "all":
            return images_below(self.path)
        names = ("validation", "val") if split == "validation" else (split,)
        for name in names:
            if (self.path / name).is_dir():
                return images_below(self.path / name)
        existing = [name for name in SPLIT_FOLDERS if (self.path / name).is_dir()]
        if existing:
            raise DataError(
                f"'{self.path}' has a folder {existing[0]} but none for {split}: expected all of "
                "the folders train, validation and test, or none of them"
            )
        files = images_below(self.path)
        places = sorted((self._place(path), path) for path in files)
        # In small folders, each split still gets at least one file.
        tests = max(1, sum(place < self.test for place, _ in places))
        others = max(tests + 1, sum(place < self.test + self.validation for place, _ in places))
        first, end = {"test": (0, tests), "validation": (tests, others)}.get(split, (others, None))
        drawn = sorted(path for _, path in places[first:end])
        if not drawn:
            raise DataError(
                f"none of the {len(files)} images in '{self.path}' is left for {split}: "
                "expected more files, smaller fractions (datamodule.images.validation and test), "
                "or the folders train, validation and test"
            )
        return drawn

    def _place(self, path: Path) -> float:
        """A number from 0 to 1 from the hash of a file's path relative to the directory."""
        name = f"{self.seed} {path.relative_to(self.path).as_posix()}"
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48

"""Image sources: CIFAR-10, the photographs of scikit-image, and image folders."""

from __future__ import annotations

import csv
import hashlib
import logging
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, cast

import numpy as np
import skimage
from PIL import Image
from rich.progress import track

from italic.atomic import whole_file
from italic.datamodules.cached import key_of_files
from italic.datamodules.crops import RandomCrops, whole_images
from italic.datamodules.image_files import DataError, images_below, read_rgb
from italic.errors import SettingError, check_range

Split = Literal["train", "validation", "test", "all"]  # all: of an image folder, to evaluate it
SPLIT_FOLDERS = ("train", "validation", "val", "test")
SOURCES = "sources.csv"  # in an image folder: where its images are from
CREDITS = "source", "author", "licence"  # its columns beside file

log = logging.getLogger(__name__)


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
    """

    TRAINING_IMAGES = 50_000

    def __init__(
        self,
        data_dir: str = "data/cifar10",
        validation: int = 5000,
        seed: int = 0,
        download: bool = True,
    ) -> None:
        check_range("validation", validation, 1, self.TRAINING_IMAGES - 1)
        self.data_dir = Path(data_dir)
        self.validation, self.seed, self.download = validation, seed, download

    def load(self, split: Split) -> np.ndarray:
        """The images of a split, uint8 (N, 32, 32, 3).

        Raises:
            DataError: the data set is missing and can't be downloaded, or it is too small.
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
            return _read_folder(folder, self.data_dir / f".{part}.npz")
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


class Photos:
    """Tiles of scikit-image's colour photographs, which need no download.

    The training images are astronaut, coffee, motorcycle, stained tissue and deep field, at full
    and at half size, with tiles that overlap by half. The validation image is the rocket, and the
    test image is the cat.

    Args:
        size: side of a tile in pixels.
        scale: factor by which the photographs are resized first, from 1/16 to 1.
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
        """The tiles of a split, uint8 (N, size, size, 3), shuffled."""
        photographs = [_resized(read_rgb(path), self.scale) for path in self._files(split)]
        stride = self.size
        if split == "train":
            halves = [
                np.asarray(Image.fromarray(photograph).reduce(2)) for photograph in photographs
            ]
            photographs, stride = photographs + halves, max(1, self.size // 2)
        large = [item for item in photographs if min(item.shape[:2]) >= self.size]
        tiles = np.concatenate([_tiles(item, self.size, stride) for item in large])
        return tiles[np.random.default_rng(0).permutation(len(tiles))]


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
        validation: fraction of the files for validation, without sub-folders for the splits.
        test: fraction of the files for test, without sub-folders for the splits.
        seed: seed of the splits and of the order.
        cache_dir: folder of the cache of decoded images, 3 bytes per pixel.
    """

    def __init__(
        self,
        path: str,
        size: int = 32,
        crop: int | None = None,
        reduced: float = 0.0,
        validation: float = 0.1,
        test: float = 0.1,
        seed: int = 0,
        cache_dir: str = "cache/images",
    ) -> None:
        check_range("size", size, 1)
        check_range("crop", crop, 1)
        check_range("reduced", reduced, 0, 1)
        if reduced and crop is None:
            raise SettingError(
                "reduced is a fraction of the random crops: expected a crop size too, crop=…"
            )
        if not (validation > 0 and test > 0 and validation + test < 1):
            raise SettingError(
                "validation and test must be fractions above 0 with a sum below 1; "
                f"got {validation} and {test}"
            )
        self.path, self.size, self.crop, self.reduced = Path(path), size, crop, reduced
        self.validation, self.test, self.seed = validation, test, seed
        self.cache_dir = Path(cache_dir)

    def load(self, split: Split) -> np.ndarray:
        """The tiles of a split, or the fixed crops with `crop`, uint8 (N, size, size, 3), shuffled.

        Raises:
            DataError: the directory does not exist, has no image or no image that is large enough,
                an image cannot be converted to 8-bit RGB without loss, or the disk has no space for
                the cache.
        """
        size = self.crop or self.size
        pieces = [_tiles(image, size, size) for image in self._large(self.whole(split), split)]
        tiles = np.concatenate(pieces)
        return tiles[np.random.default_rng(self.seed).permutation(len(tiles))]

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
        files = self._files(split)
        try:
            return whole_images(files, read_rgb, self.cache_dir)
        except OSError as error:
            raise DataError(
                f"the image cache can't be written to '{self.cache_dir}' ({error}): expected a "
                "writable folder with enough space, datamodule.images.cache_dir=…"
            ) from error

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
        return RandomCrops(list(self._large(images, "train")), self.crop, self.reduced)

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
            raise DataError(
                f"the image folder '{self.path}' does not exist: expected a folder with images, "
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


def _resized(image: np.ndarray, scale: float) -> np.ndarray:
    """Resize an image, uint8 (H, W, 3), by a factor."""
    if scale == 1:
        return image
    height, width = (round(side * scale) for side in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))


def _tiles(image: np.ndarray, size: int, stride: int) -> np.ndarray:
    """All size×size tiles at multiples of the stride, uint8 (N, size, size, 3)."""
    windows = np.lib.stride_tricks.sliding_window_view(image, (size, size), axis=(0, 1))
    return windows[::stride, ::stride].transpose(0, 1, 3, 4, 2).reshape(-1, size, size, 3)


def _read_folder(folder: Path, cache: Path) -> np.ndarray:
    """All images of class folders, uint8 (N, H, W, 3); the decoded images are cached in a file."""
    files = images_below(folder)
    listing, start = hashlib.sha256(), len(f"{folder}/")
    for path in files:
        status = os.stat(path)
        found = f"{str(path)[start:]} {status.st_size} {status.st_mtime_ns}\n"
        listing.update(found.encode())
    key = listing.hexdigest()
    if cache.is_file():
        try:
            with np.load(cache) as arrays:
                if str(arrays["key"]) == key:
                    return arrays["images"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            log.warning("%s is damaged: reading the image files again", cache)
    with ThreadPoolExecutor() as pool:
        decoded: Iterable[np.ndarray] = pool.map(read_rgb, files)
        images = list(track(decoded, f"reading {folder}", total=len(files), transient=True))
    if len({image.shape for image in images}) > 1:
        raise DataError(
            f"the images in '{folder}' differ in size: expected the images of CIFAR-10, or "
            "datamodule=folder for other images"
        )
    stacked = np.stack(images)
    # The cache is optional: without it, the next run decodes the images again.
    with suppress(OSError), whole_file(cache) as file:
        np.savez(file, key=np.array(key), images=stacked)
    return stacked

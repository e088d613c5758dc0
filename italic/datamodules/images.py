"""Where images come from: CIFAR-10, scikit-image's photographs, any folder."""

from __future__ import annotations

import hashlib
import logging
import zipfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import numpy as np
import skimage
from PIL import Image
from rich.progress import track

from italic.coding.files import whole_file

Split = Literal["train", "validation", "test"]
SPLIT_FOLDERS = ("train", "validation", "val", "test")
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

log = logging.getLogger(__name__)


class DataError(RuntimeError):
    """Images that are missing or can't be used as they are."""


class ImageSource(Protocol):
    """Images of one size in three splits."""

    def load(self, split: Split) -> np.ndarray:
        """The images of a split, uint8 (N, H, W, 3), N ≥ 1, the same in every call."""


class CIFAR10:
    """CIFAR-10: 50,000 images for training and validation, 10,000 to report on, 32×32.

    From torchvision's files (downloaded when absent) or class folders `train/<class>/*.png` and
    `test/<class>/*.png`. The order within a split is a seeded shuffle, so that the first images
    are a fair sample of all classes.

    Args:
        data_dir: folder of the data set.
        validation: images taken out of the training set for validation.
        seed: of the split and the shuffles.
        download: let torchvision download what is absent.
    """

    TRAINING_IMAGES = 50_000

    def __init__(
        self, data_dir: str, validation: int = 5000, seed: int = 0, download: bool = True
    ) -> None:
        if not 0 < validation < self.TRAINING_IMAGES:
            raise ValueError(
                f"validation must be from 1 to {self.TRAINING_IMAGES - 1} images; got {validation}"
            )
        self.data_dir = Path(data_dir)
        self.validation, self.seed, self.download = validation, seed, download

    def load(self, split: Split) -> np.ndarray:
        """The images of a split, uint8 (N, 32, 32, 3).

        Raises:
            DataError: the data set is neither there nor to be had.
        """
        images = self._read("test" if split == "test" else "train")
        # A fixed order whatever the files' names: by content, then shuffled.
        digests = [hashlib.sha256(image).digest() for image in images]
        order = np.array(sorted(range(len(images)), key=digests.__getitem__))
        order = np.random.default_rng(self.seed).permutation(order)
        if split == "validation":
            order = order[: self.validation]
        elif split == "train":
            order = order[self.validation :]
        return images[order]

    def _read(self, part: Literal["train", "test"]) -> np.ndarray:
        folder = self.data_dir / part
        if folder.is_dir():
            return _read_folder(folder, self.data_dir / f".{part}.npz")
        from torchvision import datasets

        try:
            data = datasets.CIFAR10(self.data_dir, train=part == "train", download=self.download)
        except Exception as error:
            raise DataError(
                f"CIFAR-10 is not in '{self.data_dir}' and could not be downloaded there: put "
                "torchvision's cifar-10-batches-py or the class folders train/<class>/*.png and "
                "test/<class>/*.png into it (datamodule.images.data_dir=…), or train on the "
                "photographs that are installed already: datamodule=photos"
            ) from error
        return data.data


class Photos:
    """Tiles of scikit-image's colour photographs; no download.

    Training: astronaut, coffee, motorcycle, stained tissue and deep field, at full and at half
    size, every half tile. Validation: the rocket. Test: the cat.

    Args:
        size: side of a tile in pixels.
        scale: the photographs are resized by this factor first, from 1/16 to 1.
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
            raise ValueError(f"the scale of the photographs must be from 1/16 to 1; got {scale}")
        if not 1 <= size <= 256 * scale:
            raise ValueError(
                f"the size of a tile must be from 1 to {int(256 * scale)} pixels; got {size}"
            )
        self.size, self.scale = size, scale

    def load(self, split: Split) -> np.ndarray:
        """The tiles of a split, uint8 (N, size, size, 3), shuffled."""
        folder = Path(skimage.__file__).parent / "data"
        photographs = [
            _resized(read_rgb(folder / name), self.scale) for name in self.PHOTOGRAPHS[split]
        ]
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
    """Tiles of the images anywhere below a directory.

    Sub-folders train, validation (or val) and test are the splits where they exist; otherwise
    the files are split by a seeded draw.

    Args:
        path: the directory.
        size: side of a tile in pixels; smaller images are left out.
        validation: share of the files for validation, if split by draw.
        test: share of the files for test, if split by draw.
        seed: of the draw and the shuffle.
    """

    def __init__(
        self,
        path: str,
        size: int = 32,
        validation: float = 0.1,
        test: float = 0.1,
        seed: int = 0,
    ) -> None:
        if size < 1:
            raise ValueError(f"the size of a tile must be at least 1 pixel; got {size}")
        if not (validation > 0 and test > 0 and validation + test < 1):
            raise ValueError(
                "validation and test must be shares above 0 that leave some files for training; "
                f"got {validation} and {test}"
            )
        self.path, self.size = Path(path), size
        self.validation, self.test, self.seed = validation, test, seed

    def load(self, split: Split) -> np.ndarray:
        """The tiles of a split, uint8 (N, size, size, 3), shuffled.

        Raises:
            DataError: no directory, no images, none large enough, or one that is not 8-bit RGB
                and can't become so without loss.
        """
        files = self._files(split)
        pieces, small = [], 0
        for path in track(files, f"reading {split} images", transient=True):
            image = read_rgb(path)
            if min(image.shape[:2]) < self.size:
                small += 1
            else:
                pieces.append(_tiles(image, self.size, self.size))
        if small:
            log.warning("%s: left out %d images below %d pixels", self.path, small, self.size)
        if not pieces:
            raise DataError(
                f"no {split} image below '{self.path}' has {self.size}×{self.size} pixels: give "
                "larger ones, more files, or a smaller datamodule.images.size"
            )
        tiles = np.concatenate(pieces)
        return tiles[np.random.default_rng(self.seed).permutation(len(tiles))]

    def _files(self, split: Split) -> list[Path]:
        if not self.path.is_dir():
            raise DataError(f"the image folder '{self.path}' does not exist")
        names = ("validation", "val") if split == "validation" else (split,)
        for name in names:
            if (self.path / name).is_dir():
                return images_below(self.path / name)
        there = [name for name in SPLIT_FOLDERS if (self.path / name).is_dir()]
        if there:
            raise DataError(
                f"'{self.path}' has a folder {there[0]} but none for {split}: expected train, "
                "validation and test, or none of them"
            )
        files = images_below(self.path)
        if len(files) < 3:
            raise DataError(
                f"'{self.path}' holds {len(files)} images: at least 3 are needed, one for each "
                "of training, validation and test"
            )
        shuffled = [files[i] for i in np.random.default_rng(self.seed).permutation(len(files))]
        test = max(1, round(self.test * len(files)))
        validation = max(1, round(self.validation * len(files)))
        parts: dict[Split, list[Path]] = {
            "test": shuffled[:test],
            "validation": shuffled[test : test + validation],
            "train": shuffled[test + validation :],
        }
        return parts[split]


def images_below(folder: Path) -> list[Path]:
    """The image files anywhere below a folder, sorted.

    Raises:
        DataError: there are none.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS)
    if not files:
        raise DataError(f"no images below '{folder}': expected files {', '.join(EXTENSIONS)}")
    return files


def read_rgb(path: Path) -> np.ndarray:
    """An image file as uint8 (H, W, 3), converted only where nothing is lost.

    Raises:
        DataError: it is no image, or of a kind that would lose something.
    """
    try:
        with Image.open(path) as image:
            mode = image.mode
            opaque = "transparency" not in image.info
            if mode == "RGB" or (mode in ("1", "L", "P") and opaque):
                return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"'{path}' can't be read as an image: {error}") from error
    raise DataError(
        f"'{path}' is of kind {mode}: expected 8-bit RGB, gray or palette without transparency; "
        "convert the file first or take it out of the folder"
    )


def _resized(image: np.ndarray, scale: float) -> np.ndarray:
    """A photograph, uint8 (H, W, 3), of another size."""
    if scale == 1:
        return image
    height, width = (round(side * scale) for side in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))


def _tiles(image: np.ndarray, size: int, stride: int) -> np.ndarray:
    """All size×size tiles at multiples of the stride, uint8 (N, size, size, 3)."""
    windows = np.lib.stride_tricks.sliding_window_view(image, (size, size), axis=(0, 1))
    return windows[::stride, ::stride].transpose(0, 1, 3, 4, 2).reshape(-1, size, size, 3)


def _read_folder(folder: Path, cache: Path) -> np.ndarray:
    """All images of class folders, uint8 (N, H, W, 3); kept beside them once they are decoded."""
    files = images_below(folder)
    listing = hashlib.sha256()
    for path in files:
        status = path.stat()
        found = f"{path.relative_to(folder)} {status.st_size} {status.st_mtime_ns}\n"
        listing.update(found.encode())
    key = listing.hexdigest()
    if cache.is_file():
        try:
            with np.load(cache) as kept:
                if str(kept["key"]) == key:
                    return kept["images"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            log.warning("%s is damaged: reading the image files again", cache)
    with ThreadPoolExecutor() as pool:
        decoded: Iterable[np.ndarray] = pool.map(read_rgb, files)
        images = list(track(decoded, f"reading {folder}", total=len(files), transient=True))
    if len({image.shape for image in images}) > 1:
        raise DataError(f"the images below '{folder}' differ in size: they are not CIFAR-10's")
    stacked = np.stack(images)
    with suppress(OSError), whole_file(cache) as file:  # or the next run decodes them again
        np.savez(file, key=np.array(key), images=stacked)
    return stacked

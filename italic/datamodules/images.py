"""Where images come from: CIFAR-10, scikit-image's photographs, any folder."""

from __future__ import annotations

import hashlib
import logging
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Literal, Protocol, cast

import numpy as np
import skimage
from PIL import Image
from rich.progress import track

from italic.atomic import whole_file
from italic.coding.files.pictures import PictureError, read
from italic.datamodules.crops import RandomCrops, whole_images
from italic.errors import SettingError

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


class CropSource(ImageSource, Protocol):
    """Whole images of different sizes: `load` gives fixed crops of them, of one size."""

    crop: int | None  # side of the crops in pixels; None if there are to be none

    def whole(self, split: Split) -> list[np.ndarray]:
        """The images of a split, uint8 (H, W, 3) each."""

    def random_crops(self, limit: int = 0) -> RandomCrops:
        """Random crops of the training images, or of the first few if there is a limit."""


def crops_of(source: ImageSource) -> CropSource | None:
    """The source, if training is to take random crops of its images."""
    return cast(CropSource, source) if getattr(source, "crop", None) is not None else None


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
            raise SettingError(
                f"validation must be from 1 to {self.TRAINING_IMAGES - 1} images; got {validation}"
            )
        self.data_dir = Path(data_dir)
        self.validation, self.seed, self.download = validation, seed, download

    def load(self, split: Split) -> np.ndarray:
        """The images of a split, uint8 (N, 32, 32, 3).

        Raises:
            DataError: the data set is neither there nor to be had, or too small.
        """
        images = self._read("test" if split == "test" else "train")
        if split != "test" and len(images) <= self.validation:
            raise DataError(
                f"{self.validation} validation images would take all {len(images)} of "
                f"'{self.data_dir}': expected fewer, datamodule.images.validation=…"
            )
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
            raise SettingError(f"the scale of the photographs must be from 1/16 to 1; got {scale}")
        if not 1 <= size <= 256 * scale:
            raise SettingError(
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
    """The images anywhere below a directory: tiles of one size, or random crops.

    Sub-folders train, validation (or val) and test are the splits where they exist; otherwise
    each file's split is drawn from a hash of its name, so that files that are added or taken away
    move no other (but in folders so small that a split would have none).

    Args:
        path: the directory.
        size: side of a tile in pixels; smaller images are left out.
        crop: side in pixels of random crops, which training takes in the place of tiles; images
            are kept whole, and validated by fixed crops side by side. None for tiles.
        reduced: probability of a random crop that is taken up to twice as large and reduced.
        validation: share of the files for validation, if split by draw.
        test: share of the files for test, if split by draw.
        seed: of the draw and the shuffle.
        cache_dir: where whole images are kept for `crop`: 3 bytes a pixel.
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
        if size < 1:
            raise SettingError(f"the size of a tile must be at least 1 pixel; got {size}")
        if crop is not None and crop < 1:
            raise SettingError(
                f"crop must be at least 1 pixel, or null for tiles of `size`; got {crop}"
            )
        if not 0 <= reduced <= 1:
            raise SettingError(f"reduced must be a probability, from 0 to 1; got {reduced}")
        if reduced and crop is None:
            raise SettingError(
                "reduced is a share of random crops: expected a crop size too, crop=…"
            )
        if not (validation > 0 and test > 0 and validation + test < 1):
            raise SettingError(
                "validation and test must be shares above 0 that leave some files for training; "
                f"got {validation} and {test}"
            )
        self.path, self.size, self.crop, self.reduced = Path(path), size, crop, reduced
        self.validation, self.test, self.seed = validation, test, seed
        self.cache_dir = Path(cache_dir)

    def load(self, split: Split) -> np.ndarray:
        """The tiles of a split, uint8 (N, size, size, 3), shuffled; with `crop`, of that size.

        Raises:
            DataError: no directory, no images, none large enough, one that is not 8-bit RGB and
                can't become so without loss, or no room for the cache.
        """
        size = self.crop or self.size
        images = self._read(split) if self.crop is None else self.whole(split)
        pieces = [_tiles(image, size, size) for image in self._large(images, split)]
        tiles = np.concatenate(pieces)
        return tiles[np.random.default_rng(self.seed).permutation(len(tiles))]

    def whole(self, split: Split) -> list[np.ndarray]:
        """The images of a split, uint8 (H, W, 3) each, memory-mapped, in the files' order.

        Raises:
            DataError: as `load`, but that any size will do.
        """
        files = self._files(split)
        try:
            return whole_images(files, read_rgb, self.cache_dir)
        except OSError as error:
            raise DataError(
                f"the images can't be kept in '{self.cache_dir}': {error}; make room, or name "
                "another folder, datamodule.images.cache_dir=…"
            ) from error

    def random_crops(self, limit: int = 0) -> RandomCrops:
        """Random crops of the training images, or of the first `limit` of them if not 0.

        Raises:
            DataError: as `load`.
        """
        assert self.crop is not None
        images = self.whole("train")[: limit or None]
        return RandomCrops(list(self._large(images, "train")), self.crop, self.reduced)

    def _read(self, split: Split) -> Iterator[np.ndarray]:
        for path in track(self._files(split), f"reading {split} images", transient=True):
            yield read_rgb(path)

    def _large(self, images: Iterable[np.ndarray], split: Split) -> Iterator[np.ndarray]:
        """Those that hold a tile or a crop."""
        key, size = ("size", self.size) if self.crop is None else ("crop", self.crop)
        large = small = 0
        for image in images:
            if min(image.shape[:2]) < size:
                small += 1
            else:
                large += 1
                yield image
        if small:
            log.warning("%s: left out %d images below %d pixels", self.path, small, size)
        if not large:
            raise DataError(
                f"no {split} image below '{self.path}' has {size}×{size} pixels: give "
                f"larger ones, more files, or a smaller datamodule.images.{key}"
            )

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
        places = sorted((self._place(path), path) for path in files)
        # One file at least for each, in folders of few.
        tests = max(1, sum(place < self.test for place, _ in places))
        others = max(tests + 1, sum(place < self.test + self.validation for place, _ in places))
        first, end = {"test": (0, tests), "validation": (tests, others)}.get(split, (others, None))
        drawn = sorted(path for _, path in places[first:end])
        if not drawn:
            raise DataError(
                f"none of the {len(files)} images below '{self.path}' is left for {split}: "
                "expected more files, smaller shares (datamodule.images.validation and test), or "
                "the folders train, validation and test"
            )
        return drawn

    def _place(self, path: Path) -> float:
        """A number from 0 to 1 by the hash of a file's name below the directory."""
        name = f"{self.seed} {path.relative_to(self.path).as_posix()}"
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


def images_below(folder: Path) -> list[Path]:
    """The image files anywhere below a folder, sorted.

    None that are hidden or in hidden folders, and none through links to folders below it.

    Raises:
        DataError: there are none.
    """
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in EXTENSIONS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
    if not files:
        raise DataError(f"no images below '{folder}': expected files {', '.join(EXTENSIONS)}")
    return files


def read_rgb(path: Path) -> np.ndarray:
    """An image file as uint8 (H, W, 3): RGB as it is; gray and palettes of 8 bits or less as RGB.

    Profiles, texts and an orientation in EXIF are passed over.

    Raises:
        DataError: it can't be read, has 16 bits a sample, transparency (even where nothing is
            transparent), another kind of colours, or several frames.
    """
    try:
        picture = read(path.read_bytes(), keep_metadata=False)
    except (OSError, PictureError) as error:
        raise DataError(f"'{path}' can't be read as an image: {error}") from error
    samples, channels = picture.samples, picture.samples.shape[2:]
    if samples.dtype != np.uint8 or channels not in ((), (3,)) or picture.transparency is not None:
        colour = picture.colour.name.lower().replace("_", " ")
        colour += " with transparency" if picture.transparency is not None else ""
        raise DataError(
            f"'{path}' is of kind {colour}: expected 8-bit RGB, gray or palette without "
            "transparency; convert the file first or take it out of the folder"
        )
    if picture.palette is not None:
        return np.frombuffer(picture.palette, np.uint8).reshape(-1, 3)[samples]
    return samples if channels else np.repeat(samples[..., None], 3, 2)


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

"""Image files below a folder, their pixels as RGB, and caches of these."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from italic.coding.files.pictures import PictureError, read
from italic.datamodules.cached import made_once

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


class DataError(RuntimeError):
    """Images are missing or can't be used."""


def image_cache(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder of decoded images, see `made_once`.

    Raises:
        DataError: the folder can't be written.
    """
    try:
        return made_once(folder, make)
    except OSError as error:
        raise DataError(
            f"the image cache can't be written to '{folder.parent}' ({error}): expected a writable "
            "folder with enough space, datamodule.images.cache_dir=…"
        ) from error


def images_below(folder: Path) -> list[Path]:
    """The image files in a directory tree, sorted.

    Hidden files, hidden folders and links to folders are skipped.

    Raises:
        DataError: the directory tree has no image file.
    """
    files = sorted(_image_files(folder), key=lambda path: path.split(os.sep))
    if not files:
        raise DataError(f"no images in '{folder}': expected files {', '.join(EXTENSIONS)}")
    return [Path(path) for path in files]


def _image_files(folder: Path | str) -> Iterator[str]:
    """The image files in a directory tree, in any order; faster than `Path.rglob`."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _image_files(entry.path)
            elif entry.name.lower().endswith(EXTENSIONS) and entry.is_file():
                yield entry.path


def read_rgb(path: Path) -> np.ndarray:
    """Read an image file as RGB, uint8 (H, W, 3); grey and palette images are converted to RGB.

    Colour profiles, text and the EXIF orientation are ignored.

    Raises:
        DataError: the file can't be read, has 16 bits per sample, transparency (even if all pixels
            are opaque), an unsupported colour type, or several frames.
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
            f"'{path}' is of kind {colour}: expected 8-bit RGB, grey or palette without "
            "transparency; convert the file first or remove it from the folder"
        )
    if picture.palette is not None:
        return np.frombuffer(picture.palette, np.uint8).reshape(-1, 3)[samples]
    return samples if channels else np.repeat(samples[..., None], 3, 2)

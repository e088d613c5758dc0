"""BMP, TIFF, WebP and JPEG files to pictures, by Pillow; what Pillow would change is refused."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import imagecodecs
import numpy as np
from PIL import Image

from italic.coding.files.pictures.errors import ADVICE, MetadataError, PictureError, damaged
from italic.coding.files.pictures.picture import Picture, native

_XMP = b"XML:com.adobe.xmp\0\0\0\0\0"  # iTXt's keyword and flags for XMP
# TIFF tags that describe the samples, and tags of metadata that are kept.
_TIFF_SAMPLES = (258, 262, 274, 284, 320, 330, 338, 339)
_TIFF_METADATA = (700, 34675)


def read_by_pillow(data: bytes, keep_metadata: bool) -> Picture:
    """Read a file by Pillow; arguments as for `read`.

    Raises:
        PictureError: the file is damaged, holds several pictures, or is of a kind whose samples
            Pillow changes. Pillow raises exceptions of other types for damaged files.
    """
    formats = ("BMP", "TIFF", "WEBP", "JPEG")
    with Image.open(io.BytesIO(data), formats=formats) as image:
        if getattr(image, "n_frames", 1) > 1:
            raise PictureError("the file holds several pictures or frames: expected a single one")
        if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B"):
            raise PictureError(f"the picture has samples of mode {image.mode}: {ADVICE}")
        if image.format == "BMP":
            _check_bmp(data, image)
        if image.format == "TIFF":
            samples = _tiff_samples(image, data, keep_metadata)
        else:
            samples = np.asarray(image)
        if samples.shape[:2] != (image.height, image.width):
            raise damaged("its header contradicts itself")
        bilevel = image.mode == "1"
        palette = bytes(image.getpalette("RGB") or ()) if image.mode == "P" else None
        picture = Picture(
            native(samples * np.uint8(255) if bilevel else samples), palette, None, bilevel
        )
        if not keep_metadata:
            return picture
        markers = getattr(image, "applist", ())  # of JPEG files
        profile = image.info.get("icc_profile")
        if not profile and any(body.startswith(b"ICC_PROFILE\0") for _, body in markers):
            raise damaged("part of its colour profile is missing", MetadataError)
        return _with_metadata(picture, image, data)


def with_jpeg_metadata(samples: np.ndarray, file: bytes) -> Picture:
    """The decoded samples of a JPEG file, or a region of them, with the file's metadata.

    Args:
        samples: uint8 (H, W) or (H, W, 3).
        file: the JPEG file. What Pillow can't read of its metadata is left out.
    """
    picture = Picture(samples)
    with suppress(Exception), Image.open(io.BytesIO(file), formats=("JPEG",)) as image:
        return _with_metadata(picture, image, file)
    return picture


def _with_metadata(picture: Picture, image: Image.Image, data: bytes) -> Picture:
    """A picture with the profile, EXIF and XMP of its file, opened by Pillow.

    Raises:
        MetadataError: they are damaged.
    """
    icc = _bmp_profile(data) if image.format == "BMP" else image.info.get("icc_profile")
    xmp = image.info.get("xmp")
    if isinstance(icc, str) or isinstance(xmp, str):  # TIFF tags
        raise damaged("its colour profile or XMP is a text", MetadataError)
    exif = image.info.get("exif", b"").removeprefix(b"Exif\0\0") or None
    chunks = ((b"iTXt", _XMP + xmp),) if xmp else ()
    return replace(picture, icc=icc or None, exif=exif, chunks=chunks)


def _tiff_samples(image: Image.Image, data: bytes, keep_metadata: bool) -> np.ndarray:
    """The samples of a TIFF file; damaged files, and kinds that Pillow would change, are refused.

    Pillow reduces 16-bit colours to 8 bits, and reads other data in place of strips and tiles that
    are missing. So libtiff reads the file too.
    """
    tags = image.tag_v2  # type: ignore[attr-defined]
    _check_tiff(tags, data, keep_metadata)
    by_libtiff = _by_libtiff(data, tags)
    if image.mode in ("RGB", "RGBA") and by_libtiff.dtype == np.uint16:
        return by_libtiff
    samples = np.asarray(image)
    if not np.array_equal(samples * np.uint8(255) if image.mode == "1" else samples, by_libtiff):
        raise damaged("Pillow and libtiff read different samples")
    return samples


def _check_tiff(tags: Mapping[int, Any], data: bytes, keep_metadata: bool) -> None:
    """Refuse TIFF files that Pillow would change."""
    lost = _tiff_tags(data) - set(tags)  # Pillow ignores tags that it can't read
    if lost & set(_TIFF_SAMPLES):
        raise damaged(f"its tag {min(lost & set(_TIFF_SAMPLES))} can't be read")
    if lost & set(_TIFF_METADATA) and keep_metadata:
        raise damaged("its colour profile or XMP can't be read", MetadataError)
    bits, extra = tags.get(258, (1,)), tags.get(338, ())
    kind = tags.get(262)  # 0 and 1 grey, 2 RGB, 3 palette
    if kind == 2:
        exact = bits in ((8,) * 3, (8,) * 4, (16,) * 3, (16,) * 4)
        exact &= extra == (2,) * (len(bits) - 3)  # 2: unassociated alpha
    elif bits in ((16,), (8, 8)):
        exact = kind == 1 and extra == (2,) * (len(bits) - 1)
    else:
        exact = kind in (0, 1, 3) and bits in ((1,), (2,), (4,), (8,)) and not extra
    deep = kind == 2 and bits[0] == 16
    if not exact or set(tags.get(339, (1,))) != {1} or (deep and tags.get(284, 1) != 1):
        raise PictureError(f"the picture is a kind of TIFF that can't be kept exactly: {ADVICE}")
    if 330 in tags:  # SubIFDs: reduced versions of the picture, or the full-size one
        raise PictureError(
            "the picture is a TIFF file with further pictures: expected a single one"
        )
    if tags.get(274, 1) != 1:
        raise PictureError(
            "the picture is a TIFF file with an orientation, to be shown rotated or mirrored: "
            "rotate it first"
        )
    if kind == 3 and any(value & 255 not in (0, value >> 8) for value in tags.get(320, ())):
        raise PictureError(
            "the picture has a palette of 16-bit colours: convert it to an RGB PNG first"
        )


def _by_libtiff(data: bytes, tags: Mapping[int, Any]) -> np.ndarray:
    """The samples of a TIFF file in the levels that Pillow returns, 0 and 255 for one bit."""
    try:
        samples = imagecodecs.tiff_decode(data)
    except Exception as error:
        raise damaged(f"{error} (libtiff)") from error
    if tags.get(284, 1) != 1 and samples.ndim == 3:  # a plane for each colour
        samples = np.moveaxis(samples, 0, -1)
    bits, kind = tags.get(258, (1,))[0], tags.get(262)
    if kind == 3 or bits == 16:
        return samples
    levels = samples.astype(np.uint8) * np.uint8(255 // (2**bits - 1))
    return 255 - levels if kind == 0 else levels


def _tiff_tags(data: bytes) -> set[int]:
    """The tags of a TIFF file's first picture."""
    order = "<" if data.startswith(b"II") else ">"
    big = 43 in data[2:4]
    start, number, size = ("Q", "Q", 20) if big else ("I", "H", 12)
    (offset,) = struct.unpack_from(order + start, data, 8 if big else 4)
    (count,) = struct.unpack_from(order + number, data, offset)
    entries = data[offset + struct.calcsize(order + number) :][: size * count]
    return {tag for (tag,) in struct.iter_unpack(f"{order}H{size - 2}x", entries)}


def _check_bmp(data: bytes, image: Image.Image) -> None:
    """Refuse BMP files that Pillow misreads.

    They have grey palettes with fewer entries than indices, or a fourth byte in each pixel that is
    neither 0 nor 255 throughout, although their header declares no alpha.
    """
    header = int.from_bytes(data[14:18], "little")
    bits = int.from_bytes(data[24:26] if header == 12 else data[28:30], "little")
    exact = {"1": 1, "L": 8}.get(image.mode, bits) == bits
    if exact and image.mode == "RGB" and bits == 32:
        start = int.from_bytes(data[10:14], "little")
        fourth = np.frombuffer(data, np.uint8, 4 * image.width * image.height, start)[3::4]
        exact = fourth[0] in (0, 255) and (fourth == fourth[0]).all()
    if not exact:
        raise PictureError(f"the picture is a kind of BMP that can't be kept exactly: {ADVICE}")


def _bmp_profile(data: bytes) -> bytes | None:
    """The colour profile of a BMP file, which Pillow does not read."""
    size, kind = int.from_bytes(data[14:18], "little"), data[70:74]
    if size < 124 or kind != b"DEBM":  # embedded
        return None
    start, length = struct.unpack_from("<II", data, 126)
    profile = data[14 + start :][:length]
    if len(profile) < length:
        raise damaged("its colour profile is truncated", MetadataError)
    return profile

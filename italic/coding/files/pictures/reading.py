"""Read picture files of all formats."""

from __future__ import annotations

import reprlib
import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from italic.coding.files.pictures.errors import MetadataError, PictureError
from italic.coding.files.pictures.jpeg import JPEG_SIGNATURE, read_jpeg
from italic.coding.files.pictures.picture import Picture
from italic.coding.files.pictures.pillow_formats import read_by_pillow
from italic.coding.files.pictures.png import read_png
from italic.coding.files.pictures.png_chunks import PNG_SIGNATURE
from italic.coding.files.pictures.pnm import read_pnm


def read(
    source: str | Path | bytes, keep_metadata: bool = True, whole_jpeg: bool = False
) -> Picture:
    """Read a picture file: PNG, BMP, TIFF, WebP, PNM; JPEG and lossy WebP as decoded pixels.

    Samples of less than 8 bits are scaled to 0..255 as PNG specifies, without loss; palette indices
    are not scaled. The following properties are not kept: depth, interlacing, the name of the
    profile, PNG's chunks bKGD, hIST, sPLT, tIME, private chunks, suggested palettes of colour
    pictures, and data after the end of a PNG file. Of other formats, only profile, EXIF and XMP are
    kept; of TIFF files no EXIF, since it is spread over the file's tags. Files of more than twice
    `PIL.Image.MAX_IMAGE_PIXELS` are refused, except PNM files.

    Args:
        source: path of the file, or its bytes.
        keep_metadata: keep profile, EXIF and texts. If false, these may be damaged, and other
            damaged chunks that do not affect the samples are ignored.
        whole_jpeg: keep JPEG files whole, in the attribute `jpeg` of the picture, with all that
            they hold.

    Raises:
        PictureError: the file can't be read, is damaged, or can't be kept exactly.
    """
    if not isinstance(source, str | Path | bytes):
        raise PictureError(
            f"expected the path of a picture file, or its bytes; got {reprlib.repr(source)}"
        )
    name = "" if isinstance(source, bytes) else f"'{source}': "
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        if data.startswith(PNG_SIGNATURE):
            return read_png(data, keep_metadata)
        if data.startswith(b"P"):
            return read_pnm(data)
        if whole_jpeg and data.startswith(JPEG_SIGNATURE):
            return read_jpeg(data, keep_metadata)
        return read_by_pillow(data, keep_metadata)
    except MetadataError as error:
        raise PictureError(
            f"{name}{error}; --drop-metadata leaves metadata out"
        ) from error.__cause__
    except PictureError as error:
        raise PictureError(f"{name}{error}") from error.__cause__
    except UnidentifiedImageError as error:
        raise PictureError(
            f"{name}this is not a PNG, BMP, TIFF, WebP, PNM or JPEG file, or it is damaged, or of "
            "an unsupported kind"
        ) from error
    except Exception as error:  # the decoders raise exceptions of many types
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise PictureError(f"{name}the picture can't be read: {reason}") from error


def pixels_in(path: Path) -> int:
    """Number of pixels of a picture file by its header, without decoding; 0 if it is no picture."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            return image.width * image.height
    except Exception:  # the decoders raise exceptions of many types
        return 0

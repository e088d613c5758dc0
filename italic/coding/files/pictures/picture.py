"""The content of a picture file as an object that checks itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from italic.coding.files.container import Colour
from italic.coding.files.pictures.errors import MetadataError, PictureError, damaged
from italic.coding.files.pictures.png_chunks import (
    SINGLE,
    STORED,
    chunk_name,
    damaged_chunk,
    serialised,
)

METADATA_LIMIT = 2**24  # maximum size of a picture's metadata in bytes, uncompressed
CHUNKS_LIMIT = 1024  # maximum number of PNG chunks in a picture
# Bytes in a sample, channels of colour, whether alpha follows them.
LAYOUTS = {
    Colour.GREY: (1, 1, False),
    Colour.GREY_ALPHA: (1, 1, True),
    Colour.RGB: (1, 3, False),
    Colour.RGB_ALPHA: (1, 3, True),
    Colour.GREY16: (2, 1, False),
    Colour.GREY_ALPHA16: (2, 1, True),
    Colour.RGB16: (2, 3, False),
    Colour.RGB_ALPHA16: (2, 3, True),
    Colour.BILEVEL: (1, 1, False),
    Colour.PALETTE: (1, 1, False),
}
# Inverse of LAYOUTS; the first kind (grey) of those with the same layout.
_COLOURS = {layout: colour for colour, layout in reversed(LAYOUTS.items())}


@dataclass(frozen=True, eq=False)
class Picture:
    """The content of a picture file.

    Attributes:
        samples: uint8 or uint16, (H, W) for grey, (H, W, 2) for grey and alpha, (H, W, 3) for RGB,
            (H, W, 4) for RGB and alpha; for a palette, its indices, uint8 (H, W).
        palette: 1 to 256 colours, bytes red, green and blue.
        transparency: the body of PNG's tRNS chunk. With a palette it holds the alpha values of the
            first colours, a byte each; otherwise the transparent grey or RGB sample, two bytes per
            channel, big-endian.
        bilevel: whether the file has one bit per pixel; the samples are 0 and 255.
        icc: ICC colour profile.
        exif: EXIF, starting with its TIFF header. The orientation is kept but not applied.
        chunks: types and bodies of PNG chunks: texts, colour space and pixel size.
        jpeg: the JPEG file of these samples, if it is kept whole; it holds all metadata.

    Raises:
        PictureError: the values are inconsistent.
    """

    samples: np.ndarray
    palette: bytes | None = None
    transparency: bytes | None = None
    bilevel: bool = False
    icc: bytes | None = None
    exif: bytes | None = None
    chunks: tuple[tuple[bytes, bytes], ...] = ()
    jpeg: bytes | None = None

    def __post_init__(self) -> None:
        shape, kind = self.samples.shape, self.samples.dtype
        if kind not in (np.uint8, np.uint16) or len(shape) not in (2, 3):
            raise PictureError(_expected(self.samples))
        if 0 in shape or (len(shape) == 3 and shape[2] not in (2, 3, 4)):
            raise PictureError(_expected(self.samples))
        plain = len(shape) == 2 and kind == np.uint8
        if self.palette is not None:
            colours, rest = divmod(len(self.palette), 3)
            if not plain or self.bilevel or rest or not 1 <= colours <= 256:
                raise damaged(
                    f"it has a palette of {len(self.palette)} bytes, expected 1 to 256 colours of "
                    "3 bytes and 8-bit indices"
                )
            if self.samples.max() >= colours:
                raise damaged(
                    f"it uses colour {self.samples.max()} of a palette of {colours} colours"
                )
        self._check_transparency()
        if self.bilevel and not (
            plain and self.transparency is None and np.isin(self.samples, (0, 255)).all()
        ):
            raise damaged("it is bilevel, but its samples are not all 0 or 255")
        self._check_metadata()

    def _check_transparency(self) -> None:
        if self.transparency is None:
            return
        if self.palette is not None:
            fits = len(self.transparency) <= len(self.palette) // 3
        else:
            channels = self.samples.shape[2] if self.samples.ndim == 3 else 1
            fits = channels in (1, 3) and len(self.transparency) == 2 * channels
        if not fits:
            raise damaged("its transparency does not fit its kind of samples")

    def _check_metadata(self) -> None:
        size = len(self.icc or b"") + len(self.exif or b"") + len(serialised(self.chunks))
        if size > METADATA_LIMIT or len(self.chunks) > CHUNKS_LIMIT:
            raise MetadataError(
                f"the picture has {size} bytes of metadata in {len(self.chunks)} chunks: expected "
                f"at most {METADATA_LIMIT} in {CHUNKS_LIMIT}"
            )
        seen = set()
        for kind, _ in self.chunks:
            if not any(kind in kinds for kinds in STORED.values()):
                raise PictureError(
                    f"the picture has a chunk {chunk_name(kind)}, which can't be stored"
                )
            if kind in seen and kind in SINGLE:
                raise damaged_chunk(kind, f"it has several {chunk_name(kind)} chunks")
            seen.add(kind)

    @property
    def colour(self) -> Colour:
        """Kind of the samples."""
        if self.palette is not None:
            return Colour.PALETTE
        if self.bilevel:
            return Colour.BILEVEL
        channels = self.samples.shape[2] if self.samples.ndim == 3 else 1
        return _COLOURS[self.samples.itemsize, 1 if channels < 3 else 3, channels in (2, 4)]


def from_array(array: np.ndarray) -> Picture:
    """Convert an array to a picture.

    Args:
        array: uint8 or uint16, (H, W) or (H, W, C) with C from 1 to 4: grey, grey and alpha, RGB,
            RGB and alpha.

    Raises:
        PictureError: the array has another type or shape, or masked samples.
    """
    if not isinstance(array, np.ndarray) or array.dtype.kind != "u":
        raise PictureError(_expected(array))
    if np.ma.is_masked(array):
        raise PictureError("the picture has masked samples: fill them with array.filled(…)")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    return Picture(native(array))


def native(array: np.ndarray) -> np.ndarray:
    """The array in this machine's byte order, C-contiguous, of the same type and shape."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))


def big_endian(samples: np.ndarray) -> np.ndarray:
    """The bytes of samples, uint8 or uint16, in big-endian order, uint8.

    For uint16, the last axis is twice as long.
    """
    return np.ascontiguousarray(samples, samples.dtype.newbyteorder(">")).view(np.uint8)


def _expected(array: object) -> str:
    shape, kind = getattr(array, "shape", None), getattr(array, "dtype", type(array).__name__)
    return (
        f"the picture has samples of {kind} in shape {shape}: expected uint8 or uint16, (H, W) or "
        "(H, W, C) with 1 to 4 channels, at least one pixel"
    )

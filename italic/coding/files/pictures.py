"""Read and write picture files losslessly; files that can't be kept exactly are refused.

A `Picture` is the content of a file with its original sample type, palette and metadata. `split`
separates it into the main picture, 8-bit RGB, that the codec codes, and chunks of bytes. `join`
inverts `split`.
"""

from __future__ import annotations

import io
import re
import reprlib
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from PIL import Image, UnidentifiedImageError

from italic.coding.files.container import Chunk, Colour

METADATA_LIMIT = 2**24  # maximum size of a picture's metadata in bytes, uncompressed
CHUNKS_LIMIT = 1024  # maximum number of PNG chunks in a picture

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_LIBPNG_SIDE = 10**6  # pixels; libpng refuses longer ones
_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
# Passes of interlaced PNG files: first row and column, row and column stride.
_ADAM7 = (
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)
# PNG chunks that are stored unchanged. All of them may precede the palette in a written file.
_STORED = {
    Chunk.GAMMA: (b"gAMA", b"cHRM", b"sRGB", b"cICP", b"mDCV", b"cLLI", b"sBIT"),
    Chunk.TEXT: (b"tEXt", b"zTXt", b"iTXt"),
    Chunk.OTHER: (b"pHYs",),
}
_SINGLE = (
    b"IHDR",
    b"PLTE",
    b"tRNS",
    b"iCCP",
    b"eXIf",
    *_STORED[Chunk.GAMMA],
    *_STORED[Chunk.OTHER],
)
# Chunks that do not affect the samples, and the maximum length of those without text.
_METADATA = (b"iCCP", b"eXIf", b"bKGD", b"hIST", b"sPLT", b"tIME", *chain(*_STORED.values()))
_LONGEST = 32
_XMP = b"XML:com.adobe.xmp\0\0\0\0\0"  # iTXt's keyword and flags for XMP
_GAP = rb"(?:\s|#[^\r\n]*[\r\n])+"
_NUMBER = _GAP + rb"(\d{1,9})"
_PNM = re.compile(rb"P(?:[14]" + 2 * _NUMBER + rb"|[2356]" + 3 * _NUMBER + rb")\s")
_ADVICE = "convert the file to an 8- or 16-bit grey or RGB PNG first"

# Bytes in a sample, channels of colour, whether alpha follows them.
_LAYOUTS = {
    Colour.GRAY: (1, 1, False),
    Colour.GRAY_ALPHA: (1, 1, True),
    Colour.RGB: (1, 3, False),
    Colour.RGB_ALPHA: (1, 3, True),
    Colour.GRAY16: (2, 1, False),
    Colour.GRAY_ALPHA16: (2, 1, True),
    Colour.RGB16: (2, 3, False),
    Colour.RGBA16: (2, 3, True),
    Colour.BILEVEL: (1, 1, False),
    Colour.PALETTE: (1, 1, False),
}
# Inverse of _LAYOUTS; the first kind (grey) of those with the same layout.
_COLOURS = {layout: colour for colour, layout in reversed(_LAYOUTS.items())}

# Prediction of planes before zlib: bits of a chunk's first byte.
_LEFT, _UP, _REFERENCE = 1, 2, 4


# TIFF tags that describe the samples, and tags of metadata that are kept.
_TIFF_SAMPLES = (258, 262, 274, 284, 320, 330, 338, 339)
_TIFF_METADATA = (700, 34675)


class PictureError(ValueError):
    """A picture that can't be kept exactly or is damaged."""


class _MetadataError(PictureError):
    """Metadata of a picture that can't be kept or are damaged."""


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
                raise _damaged(
                    f"it has a palette of {len(self.palette)} bytes, expected 1 to 256 colours of "
                    "3 bytes and 8-bit indices"
                )
            if self.samples.max() >= colours:
                raise _damaged(
                    f"it uses colour {self.samples.max()} of a palette of {colours} colours"
                )
        self._check_transparency()
        if self.bilevel and not (
            plain and self.transparency is None and np.isin(self.samples, (0, 255)).all()
        ):
            raise _damaged("it is bilevel, but its samples are not all 0 or 255")
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
            raise _damaged("its transparency does not fit its kind of samples")

    def _check_metadata(self) -> None:
        size = len(self.icc or b"") + len(self.exif or b"") + len(_serialised(self.chunks))
        if size > METADATA_LIMIT or len(self.chunks) > CHUNKS_LIMIT:
            raise _MetadataError(
                f"the picture has {size} bytes of metadata in {len(self.chunks)} chunks: expected "
                f"at most {METADATA_LIMIT} in {CHUNKS_LIMIT}"
            )
        seen = set()
        for kind, _ in self.chunks:
            if not any(kind in kinds for kinds in _STORED.values()):
                raise PictureError(f"the picture has a chunk {_name(kind)}, which can't be stored")
            if kind in seen and kind in _SINGLE:
                raise _damaged_chunk(kind, f"it has several {_name(kind)} chunks")
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
    return Picture(_native(array))


def read(source: str | Path | bytes, keep_metadata: bool = True) -> Picture:
    """Read a picture file: PNG, BMP, TIFF, WebP, PNM; JPEG and lossy WebP as decoded pixels.

    Samples of less than 8 bits are scaled to 0..255 as PNG specifies, without loss; palette indices
    are not scaled. The following properties are not kept: depth, interlacing, the name of the
    profile, and PNG's chunks bKGD, hIST, sPLT, tIME and private chunks. Of other formats, only
    profile, EXIF and XMP are kept; of TIFF files no EXIF, since it is spread over the file's tags.
    Files of more than twice `PIL.Image.MAX_IMAGE_PIXELS` are refused, except PNM files.

    Args:
        source: path of the file, or its bytes.
        keep_metadata: keep profile, EXIF and texts. If false, these may be damaged, and other
            damaged chunks that do not affect the samples are ignored.

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
            return _read_png(data, keep_metadata)
        if data.startswith(b"P"):
            return _read_pnm(data)
        return _read_other(data, keep_metadata)
    except _MetadataError as error:
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


def to_png(picture: Picture) -> bytes:
    """Encode the picture as a PNG file with all its metadata."""
    samples = picture.samples
    height, width, channels = (*samples.shape, 1)[:3]
    if picture.palette is None and not picture.bilevel and max(height, width) <= _LIBPNG_SIDE:
        encoded = png_chunks(bytes(imagecodecs.png_encode(samples)))
        data = b"".join(body for name, body in encoded if name == b"IDAT")
    else:
        # Each row begins with its filter type: none, which is best for indices and single bits.
        rows = np.packbits(samples > 0, axis=1) if picture.bilevel else _bytes(samples)
        data = zlib.compress(np.pad(rows.reshape(height, -1), ((0, 0), (1, 0))).tobytes(), 9)
    depth = 1 if picture.bilevel else 8 * samples.itemsize
    kind = 3 if picture.palette is not None else (0, 4, 2, 6)[channels - 1]
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), *picture.chunks]
    if picture.icc is not None:
        chunks.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(picture.icc, 9)))
    for name, body in (
        (b"eXIf", picture.exif),
        (b"PLTE", picture.palette),
        (b"tRNS", picture.transparency),
    ):
        if body is not None:
            chunks.append((name, body))
    return _png([*chunks, (b"IDAT", data), (b"IEND", b"")])


def split(picture: Picture) -> tuple[Colour, np.ndarray, list[tuple[Chunk, bytes]]]:
    """Split a picture into the main picture, 8-bit RGB for the network, and chunks.

    The main picture has the height and width of the picture. Its samples depend on the kind:

        RGB               the samples
        grey, bilevel     the samples, three times
        16 bits           the high bytes, as above; LOW_BYTES holds the low bytes
        palette           the colours; PALETTE holds the palette. If the palette has equal colours,
                          LOW_BYTES holds the rank of each pixel's index among them. Without this
                          chunk all ranks are 0.

    ALPHA holds the alpha samples, or the body of tRNS for kinds without alpha. GAMMA, TEXT and
    OTHER hold PNG chunks with their lengths, types and bodies. Each type of chunk occurs at most
    once.

    Returns:
        The kind of samples, the main picture, uint8 (H, W, 3), and the chunks.
    """
    colour = picture.colour
    size, colours, alpha = _LAYOUTS[colour]
    height, width = picture.samples.shape[:2]
    samples = _bytes(picture.samples).reshape(height, width, -1, size)
    chunks = []
    if picture.palette is not None:
        _, _, ranks = _sorted_palette(picture.palette)
        main = np.frombuffer(picture.palette, np.uint8).reshape(-1, 3)[picture.samples]
        chunks.append((Chunk.PALETTE, zlib.compress(picture.palette, 9)))
        rank = ranks[picture.samples][..., None]
        if rank.any():
            chunks.append((Chunk.LOW_BYTES, _pack(rank, np.uint8(0))))
    else:
        main = np.empty((height, width, 3), np.uint8)
        main[:] = samples[:, :, :colours, 0]
        if size == 2:
            chunks.append((Chunk.LOW_BYTES, _pack(samples[:, :, :colours, 1], main[..., :colours])))
    if alpha:
        chunks.append((Chunk.ALPHA, _pack(samples[:, :, -1], np.uint8(255))))
    for kind, content in (
        (Chunk.ALPHA, picture.transparency),
        (Chunk.ICC, picture.icc),
        (Chunk.EXIF, picture.exif),
    ):
        if content is not None:
            chunks.append((kind, zlib.compress(content, 9)))
    for kind, names in _STORED.items():
        content = _serialised(chunk for chunk in picture.chunks if chunk[0] in names)
        if content:
            chunks.append((kind, zlib.compress(content, 9)))
    return colour, main, chunks


def join(colour: Colour, main: np.ndarray, chunks: Iterable[tuple[int, bytes]]) -> Picture:
    """Invert `split`.

    For any chunks, memory is bounded by about 40 bytes per pixel of the main picture plus a few
    times `METADATA_LIMIT`.

    Args:
        colour: kind of the samples.
        main: main picture, uint8 (H, W, 3).
        chunks: types and contents of the chunks.

    Raises:
        PictureError: a chunk is damaged, missing, unknown, or inconsistent with the others.
    """
    reader = _ChunkReader(chunks)
    rest = reader.all_but_samples(colour)
    size, colours, alpha = _LAYOUTS[colour]
    shape = main.shape[:2]
    if colours == 1 and colour != Colour.PALETTE and (main != main[..., :1]).any():
        raise _damaged(f"it is {colour.name}, but its main picture is not grey")
    samples = np.empty((*shape, colours + alpha, size), np.uint8)  # the last axis is big-endian
    if rest["palette"] is not None:
        ranks = np.zeros((*shape, 1), np.uint8)
        if Chunk.LOW_BYTES in reader:
            ranks = reader.plane(Chunk.LOW_BYTES, ranks.shape, np.uint8(0))
        samples[:, :, 0] = _indices(rest["palette"], main, ranks[..., 0])[..., None]
    else:
        samples[:, :, :colours, 0] = main[..., :colours]
        if size == 2:
            low = reader.plane(Chunk.LOW_BYTES, (*shape, colours), main[..., :colours])
            samples[:, :, :colours, 1] = low
    if alpha:
        samples[:, :, -1] = reader.plane(Chunk.ALPHA, (*shape, size), np.uint8(255))
    reader.finish()
    pixels = samples.view(f">u{size}").reshape(*shape, colours + alpha)
    if pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    return Picture(_native(pixels), **rest)


def without_samples(colour: Colour, chunks: Iterable[tuple[int, bytes]]) -> Picture:
    """A black picture of one pixel with the palette and metadata of the chunks, see `join`.

    Raises:
        PictureError: a chunk is damaged or missing; chunks of samples are not checked.
    """
    size, colours, alpha = _LAYOUTS[colour]
    shape = (1, 1) if colours + alpha == 1 else (1, 1, colours + alpha)
    rest = _ChunkReader(chunks).all_but_samples(colour)
    return Picture(np.zeros(shape, f"u{size}"), **rest)


class _ChunkReader:
    """Reads the contents of untrusted chunks within limits of size."""

    def __init__(self, chunks: Iterable[tuple[int, bytes]]) -> None:
        self._contents: dict[int, list[bytes]] = {}
        self._budget = METADATA_LIMIT
        for kind, content in chunks:
            self._contents.setdefault(kind, []).append(content)
        for kind, contents in self._contents.items():
            if len(contents) > 1 and kind not in (Chunk.TEXT, Chunk.OTHER):
                raise _damaged(f"it has several chunks of type {kind:d}")

    def __contains__(self, kind: Chunk) -> bool:
        return kind in self._contents

    def all_but_samples(self, colour: Colour) -> dict[str, Any]:
        """All arguments of a `Picture` of this kind except its samples."""
        palette = transparency = None
        if colour == Colour.PALETTE:
            palette = self._content(Chunk.PALETTE, 768)
        if Chunk.ALPHA in self and not _LAYOUTS[colour][2]:
            transparency = self._content(Chunk.ALPHA, 256)
        return {
            "palette": palette,
            "transparency": transparency,
            "bilevel": colour == Colour.BILEVEL,
            "icc": self._metadata(Chunk.ICC),
            "exif": self._metadata(Chunk.EXIF),
            "chunks": tuple(chunk for item in _STORED.items() for chunk in self._png(*item)),
        }

    def _content(self, kind: Chunk, limit: int) -> bytes:
        """The single content of a type, decompressed, at most `limit` bytes."""
        return _inflate(self._take(kind), limit, f"{kind.name} chunk")

    def plane(
        self, kind: Chunk, shape: tuple[int, ...], reference: np.ndarray | np.uint8
    ) -> np.ndarray:
        """Samples of a plane, see `_pack`."""
        return _unpack(self._take(kind), shape, reference, f"{kind.name} chunk")

    def _metadata(self, kind: Chunk) -> bytes | None:
        """The single content of a type, decompressed; None if there is no such chunk."""
        return self._within_budget(kind, self._take(kind)) if kind in self else None

    def _png(self, kind: Chunk, names: tuple[bytes, ...]) -> Iterator[tuple[bytes, bytes]]:
        """The PNG chunks in all contents of a type."""
        for content in self._contents.pop(kind, []):
            data = self._within_budget(kind, content)
            position = 0
            for _ in range(CHUNKS_LIMIT + 1):
                if position == len(data):
                    break
                length, name = _unpack_head(data, position)
                body = data[position + 8 : position + 8 + length]
                if name not in names or len(body) != length:
                    raise _damaged(f"its {kind.name} chunk holds other data than PNG chunks")
                yield name, body
                position += 8 + length
            else:
                raise _damaged(f"its {kind.name} chunk holds too many chunks")

    def finish(self) -> None:
        """Check that all chunks were used."""
        for kind in self._contents:
            raise PictureError(
                f"the picture has a chunk of type {kind:d}, which does not belong to its kind of "
                "samples: it is damaged or was written by a newer ITALIC"
            )

    def _take(self, kind: Chunk) -> bytes:
        if kind not in self:
            raise _damaged(f"its {kind.name} chunk is missing")
        return self._contents.pop(kind)[0]

    def _within_budget(self, kind: Chunk, content: bytes) -> bytes:
        data = _inflate(content, self._budget, f"{kind.name} chunk")
        self._budget -= len(data)
        return data


def _pack(plane: np.ndarray, reference: np.ndarray | np.uint8) -> bytes:
    """Encode samples as a chunk: a byte for the prediction, then the residuals by zlib.

    If all residuals are 0, there are no further bytes.

    Args:
        plane: uint8 (H, W, C).
        reference: uint8, prediction of the plane, in a shape that broadcasts to it.
    """
    plane = plane.transpose(2, 0, 1)
    prediction = np.broadcast_to(reference, plane.shape[1:] + plane.shape[:1]).transpose(2, 0, 1)

    def residual(method: int) -> np.ndarray:
        rest = plane - prediction if method & _REFERENCE else plane
        if method & _LEFT:
            rest = np.diff(rest, axis=2, prepend=np.uint8(0))
        if method & _UP:
            rest = np.diff(rest, axis=1, prepend=np.uint8(0))
        return rest

    for method in (0, _REFERENCE):
        if not residual(method).any():
            return bytes([method])
    # The fastest level of compression is enough for the comparison.
    sizes = {
        method: len(zlib.compress(residual(method).tobytes(), 1))
        for method in (0, _LEFT, _UP, _LEFT | _UP, _REFERENCE)
    }
    best = min(sizes, key=sizes.__getitem__)
    return bytes([best]) + zlib.compress(residual(best).tobytes(), 9)


def _unpack(
    data: bytes, shape: tuple[int, ...], reference: np.ndarray | np.uint8, what: str
) -> np.ndarray:
    """Invert `_pack`: uint8 of the given shape."""
    height, width, channels = shape
    size = height * width * channels
    if not data or data[0] > (_LEFT | _UP | _REFERENCE):
        raise _damaged(f"its {what} begins with an unknown method")
    method, body = data[0], data[1:]
    raw = _inflate(body, size, what) if body else bytes(size)
    if len(raw) != size:
        raise _damaged(f"its {what} has {len(raw)} bytes, expected {size}")
    plane = np.frombuffer(raw, np.uint8).reshape(channels, height, width)
    if method & _UP:
        plane = plane.cumsum(axis=1, dtype=np.uint8)
    if method & _LEFT:
        plane = plane.cumsum(axis=2, dtype=np.uint8)
    plane = plane.transpose(1, 2, 0)
    return plane + reference if method & _REFERENCE else plane


def _inflate(data: bytes, limit: int, what: str, kind: type[PictureError] = PictureError) -> bytes:
    """Decompress zlib data of at most `limit` bytes."""
    decompressor = zlib.decompressobj()
    try:
        # One byte more than the limit: zlib treats 0 as no limit, and detects the end of its data
        # only if there is room for more output.
        raw = decompressor.decompress(data, limit + 1)
    except zlib.error as error:
        raise _damaged(f"its {what} can't be decompressed", kind) from error
    if len(raw) > limit:
        raise _damaged(f"its {what} decompresses to more than {limit} bytes", kind)
    if not decompressor.eof or decompressor.unused_data:
        raise _damaged(f"its {what} is too short or too long", kind)
    return raw


def _sorted_palette(palette: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sort a palette: its order, the sorted colours as numbers, and ranks among equal colours.

    The ranks are in the original order of the palette.
    """
    colours = _numbers(np.frombuffer(palette, np.uint8).reshape(-1, 3))
    order = np.argsort(colours, kind="stable")
    ranks = np.empty(len(order), np.uint8)
    ranks[order] = np.arange(len(order)) - np.searchsorted(colours[order], colours[order])
    return order, colours[order], ranks


def _indices(palette: bytes, main: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """The palette index of each pixel, uint8 (H, W), from its colour and rank."""
    if not palette or len(palette) % 3:
        raise _damaged(f"it has a palette of {len(palette)} bytes")
    order, colours, _ = _sorted_palette(palette)
    wanted = _numbers(main)
    places = np.searchsorted(colours, wanted).astype(np.uint16) + ranks
    if (places >= len(order)).any() or (colours[places] != wanted).any():
        raise _damaged("its palette does not have all colours of its main picture")
    return order.astype(np.uint8)[places]


def _numbers(colours: np.ndarray) -> np.ndarray:
    """Colours, uint8 (..., 3), as one number each, uint32 (...)."""
    red, green, blue = (colours[..., i].astype(np.uint32) for i in range(3))
    return red << 16 | green << 8 | blue


def _read_png(data: bytes, keep_metadata: bool) -> Picture:
    parts: dict[bytes, list[bytes]] = {}
    for name, body in png_chunks(data, keep_metadata):
        if not name[0] & 32 and name not in _CRITICAL:  # a capital marks a critical chunk
            raise PictureError(f"the picture has an unknown critical chunk {_name(name)}")
        parts.setdefault(name, []).append(body)
    for name, bodies in list(parts.items()):
        if len(bodies) > 1 and name in _SINGLE:
            if name in _METADATA and not keep_metadata:
                del parts[name]
                continue
            raise _damaged_chunk(name, f"it has several {_name(name)} chunks")
    if b"acTL" in parts:
        raise PictureError("the picture is animated: only single pictures can be kept")
    first = {name: bodies[0] for name, bodies in parts.items()}
    depth, kind, size = _png_header(first.get(b"IHDR", b""))

    critical = [(name, b"".join(parts[name])) for name in _CRITICAL if name in parts]
    bare = _png(critical)  # so that decoders neither apply transparency nor parse texts
    # Pillow checks the size. It would reduce 16-bit colours to 8 bits, so imagecodecs decodes them.
    with Image.open(io.BytesIO(bare), formats=("PNG",)) as image:
        _check_raster(b"".join(parts.get(b"IDAT", ())), size)
        samples = imagecodecs.png_decode(bare) if depth == 16 else np.asarray(image)
    if depth == 1 and kind == 0:
        samples = samples.astype(np.uint8) * 255

    palette, transparency = None, first.get(b"tRNS")
    if kind == 3:
        if b"PLTE" not in first:
            raise _damaged("it has no palette")
        palette = first[b"PLTE"]
    elif kind == 0 and depth < 8 and transparency is not None and len(transparency) == 2:
        largest = 2**depth - 1  # the key scales with the samples
        key = (int.from_bytes(transparency, "big") & largest) * (255 // largest)
        transparency = key.to_bytes(2, "big")
    bilevel = depth == 1 and kind == 0 and transparency is None

    icc = exif = None
    if keep_metadata:
        exif = first.get(b"eXIf")
        if b"iCCP" in first:
            _, _, profile = first[b"iCCP"].partition(b"\0")
            icc = _inflate(profile[1:], METADATA_LIMIT, "colour profile", _MetadataError)
    chunks = tuple(
        (name, body)
        for group, names in _STORED.items()
        for name in names
        for body in parts.get(name, ())
        if keep_metadata or (group != Chunk.TEXT and len(body) <= _LONGEST)
    )
    return Picture(_native(samples), palette, transparency, bilevel, icc, exif, chunks)


def _png_header(body: bytes) -> tuple[int, int, int]:
    """Depth and colour type of a PNG file, and the size of its filtered rows in bytes."""
    if len(body) == 13:
        width, height, depth, kind, _, _, interlaced = struct.unpack(">IIBBBBB", body)
        if width and height and depth in _PNG_DEPTHS.get(kind, ()):
            bits = depth * {2: 3, 4: 2, 6: 4}.get(kind, 1)
            size = 0
            for top, left, down, right in _ADAM7 if interlaced else ((0, 0, 1, 1),):
                rows, columns = -((top - height) // down), -((left - width) // right)
                size += rows * (1 + (columns * bits + 7) // 8) if columns > 0 else 0
            return depth, kind, size
    raise _damaged("its header is not a valid PNG header")


def _check_raster(data: bytes, size: int) -> None:
    """Refuse rows of fewer than `size` bytes, or without zlib's checksum.

    Pillow would fill missing rows with black. Further bytes are ignored, as in all decoders.
    """
    decompressor = zlib.decompressobj()
    try:
        found = len(decompressor.decompress(data, size))
        # One byte more: zlib detects the end of its data only if there is room for more output.
        more = decompressor.decompress(decompressor.unconsumed_tail, 1)
    except zlib.error as error:
        raise _damaged("its samples can't be decompressed") from error
    if found < size:
        raise _damaged(f"it is truncated: it has {found} of {size} bytes of samples")
    if not (more or decompressor.eof):
        raise _damaged("it is truncated: the checksum of its samples is missing")


def png_chunks(data: bytes, keep_metadata: bool = True) -> Iterator[tuple[bytes, bytes]]:
    """Types and bodies of a PNG file's chunks, up to IEND; a second PNG file after it is refused.

    If metadata are not kept, metadata chunks with a wrong checksum are left out.
    """
    position = len(PNG_SIGNATURE)
    while position + 12 <= len(data):
        length, name = _unpack_head(data, position)
        end = position + 12 + length
        if end > len(data):
            break
        body = data[position + 8 : end - 4]
        position = end
        if zlib.crc32(body, zlib.crc32(name)) != int.from_bytes(data[end - 4 : end], "big"):
            if name in _METADATA and not keep_metadata:
                continue
            raise _damaged_chunk(name, f"its {_name(name)} chunk does not match its checksum")
        yield name, body
        if name == b"IEND":
            if data.startswith(PNG_SIGNATURE, end):
                raise PictureError("the file holds several pictures: expected a single one")
            return
    raise _damaged("it is truncated")


def _unpack_head(data: bytes, position: int) -> tuple[int, bytes]:
    """Length and type of a PNG chunk; missing bytes are read as zeros."""
    length, name = struct.unpack(">I4s", data[position : position + 8].ljust(8, b"\0"))
    return length, name


def _png(chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
    parts = [PNG_SIGNATURE]
    for name, body in chunks:
        checksum = zlib.crc32(body, zlib.crc32(name))
        parts += [struct.pack(">I4s", len(body), name), body, struct.pack(">I", checksum)]
    return b"".join(parts)


def _serialised(chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join(struct.pack(">I4s", len(body), name) + body for name, body in chunks)


def _damaged(reason: str, kind: type[PictureError] = PictureError) -> PictureError:
    return kind(f"the picture is damaged: {reason}")


def _damaged_chunk(name: bytes, reason: str) -> PictureError:
    return _damaged(reason, _MetadataError if name in _METADATA else PictureError)


def _name(kind: bytes) -> str:
    """A printable form of a chunk's type."""
    return repr(kind)[2:-1]


def _read_pnm(data: bytes) -> Picture:
    """Read a PNM file.

    Pillow would scale samples, reduce 16 bits to 8, and ignore further pictures in the file.
    """
    match = _PNM.match(data)
    if match is None:
        raise PictureError(
            "the picture begins with P, but is not a binary or plain PBM, PGM or PPM file"
        )
    kind, raster = int(data[1:2]), data[match.end() :]
    width, height, *rest = (int(group) for group in match.groups() if group is not None)
    largest = rest[0] if rest else 1
    if rest and largest not in (255, 65535):
        raise PictureError(
            f"the picture has samples of 0 to {largest}: only 0 to 255 and 0 to 65535 can be "
            f"kept; {_ADVICE}"
        )
    channels, size = (3 if kind in (3, 6) else 1), (2 if largest > 255 else 1)
    if kind <= 3:
        found, row = _plain_samples(raster, bilevel=kind == 1), width * channels
    else:
        found = np.frombuffer(raster, np.uint8)
        row = (width + 7) // 8 if kind == 4 else width * channels * size
    if len(found) != height * row or not len(found):
        raise PictureError(
            f"the picture is damaged, or the file holds several pictures: it has {len(found)} "
            f"{'samples' if kind <= 3 else 'bytes of samples'}, expected {height * row}"
        )
    if kind <= 3 and found.max() > largest:
        raise _damaged(f"it has samples outside 0 to {largest}")
    if not rest:
        ink = found if kind == 1 else np.unpackbits(found.reshape(height, row), 1, width)
        return Picture((1 - ink.reshape(height, width)) * np.uint8(255), bilevel=True)
    samples = found.astype(f"u{size}") if kind <= 3 else found.view(f">u{size}")
    return from_array(samples.reshape(height, width, channels))


def _plain_samples(text: bytes, bilevel: bool) -> np.ndarray:
    """The samples of a plain PNM file; invalid characters of bilevel files give large numbers."""
    text = re.sub(rb"#[^\r\n]*", b" ", text)
    if bilevel:  # one character per sample
        return np.frombuffer(b"".join(text.split()), np.uint8) - ord("0")
    if text.translate(None, b"0123456789 \t\n\v\f\r"):
        raise _damaged("it has samples that are not numbers")
    return np.fromstring(text.strip(), np.int64, sep=" ")  # spaces alone would give a 0


def _read_other(data: bytes, keep_metadata: bool) -> Picture:
    """Read a file by Pillow; kinds whose samples Pillow changes are refused."""
    formats = ("BMP", "TIFF", "WEBP", "JPEG")
    with Image.open(io.BytesIO(data), formats=formats) as image:
        if getattr(image, "n_frames", 1) > 1:
            raise PictureError("the file holds several pictures or frames: expected a single one")
        if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B"):
            raise PictureError(f"the picture has samples of mode {image.mode}: {_ADVICE}")
        deep = False
        if image.format == "TIFF":
            deep = _check_tiff(image, data, keep_metadata)
        if image.format == "BMP":
            _check_bmp(data, image.mode)
        samples = imagecodecs.tiff_decode(data) if deep else np.asarray(image)
        if samples.shape[:2] != (image.height, image.width):
            raise _damaged("its header contradicts itself")
        bilevel = image.mode == "1"
        palette = bytes(image.getpalette("RGB") or ()) if image.mode == "P" else None
        icc = exif = None
        chunks = []
        if keep_metadata:
            icc = _bmp_profile(data) if image.format == "BMP" else image.info.get("icc_profile")
            markers = getattr(image, "applist", ())  # of JPEG files
            if not icc and any(body.startswith(b"ICC_PROFILE\0") for _, body in markers):
                raise _damaged("part of its colour profile is missing", _MetadataError)
            exif = image.info.get("exif", b"").removeprefix(b"Exif\0\0") or None
            if image.info.get("xmp"):
                chunks.append((b"iTXt", _XMP + image.info["xmp"]))
    if bilevel:
        samples = samples.astype(np.uint8) * 255
    return Picture(_native(samples), palette, None, bilevel, icc or None, exif, tuple(chunks))


def _check_tiff(image: Image.Image, data: bytes, keep_metadata: bool) -> bool:
    """Refuse TIFF files that Pillow would change.

    Returns:
        Whether the file has 16-bit colours, which Pillow would reduce to 8 bits.
    """
    tags = image.tag_v2  # type: ignore[attr-defined]
    lost = _tiff_tags(data) - set(tags)  # Pillow ignores tags that it can't read
    if lost & set(_TIFF_SAMPLES):
        raise _damaged(f"its tag {min(lost & set(_TIFF_SAMPLES))} can't be read")
    if lost & set(_TIFF_METADATA) and keep_metadata:
        raise _damaged("its colour profile or XMP can't be read", _MetadataError)
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
        raise PictureError(f"the picture is a kind of TIFF that can't be kept exactly: {_ADVICE}")
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
    return deep


def _tiff_tags(data: bytes) -> set[int]:
    """The tags of a TIFF file's first picture."""
    order = "<" if data.startswith(b"II") else ">"
    big = 43 in data[2:4]
    start, number, size = ("Q", "Q", 20) if big else ("I", "H", 12)
    (offset,) = struct.unpack_from(order + start, data, 8 if big else 4)
    (count,) = struct.unpack_from(order + number, data, offset)
    entries = data[offset + struct.calcsize(order + number) :][: size * count]
    return {tag for (tag,) in struct.iter_unpack(f"{order}H{size - 2}x", entries)}


def _check_bmp(data: bytes, mode: str) -> None:
    """Refuse grey palettes with fewer entries than indices, which Pillow misreads."""
    header = int.from_bytes(data[14:18], "little")
    bits = int.from_bytes(data[24:26] if header == 12 else data[28:30], "little")
    if {"1": 1, "L": 8}.get(mode, bits) != bits:
        raise PictureError(f"the picture is a kind of BMP that can't be kept exactly: {_ADVICE}")


def _bmp_profile(data: bytes) -> bytes | None:
    """The colour profile of a BMP file, which Pillow does not read."""
    size, kind = int.from_bytes(data[14:18], "little"), data[70:74]
    if size < 124 or kind != b"DEBM":  # embedded
        return None
    start, length = struct.unpack_from("<II", data, 126)
    profile = data[14 + start :][:length]
    if len(profile) < length:
        raise _damaged("its colour profile is truncated", _MetadataError)
    return profile


def _native(array: np.ndarray) -> np.ndarray:
    """The array in this machine's byte order, C-contiguous."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))


def _bytes(samples: np.ndarray) -> np.ndarray:
    """The bytes of samples, big-endian, uint8; 16-bit samples double the last axis."""
    return np.ascontiguousarray(samples, samples.dtype.newbyteorder(">")).view(np.uint8)


def _expected(array: object) -> str:
    shape, kind = getattr(array, "shape", None), getattr(array, "dtype", type(array).__name__)
    return (
        f"the picture has samples of {kind} in shape {shape}: expected uint8 or uint16, (H, W) or "
        "(H, W, C) with 1 to 4 channels, at least one pixel"
    )

"""PNG files to pictures and back."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence

import imagecodecs
import numpy as np
from PIL import Image

from italic.coding.files.container import Chunk
from italic.coding.files.pictures.errors import MetadataError, PictureError, damaged, inflated
from italic.coding.files.pictures.picture import METADATA_LIMIT, Picture, big_endian, native
from italic.coding.files.pictures.png_chunks import (
    CRITICAL,
    METADATA,
    SINGLE,
    STORED,
    chunk_name,
    damaged_chunk,
    png_chunks,
    png_file,
)

_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_LIBPNG_SIDE = 10**6  # pixels; libpng refuses longer ones
_LONGEST = 32  # bytes of a metadata chunk without text that is kept in any case
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


def read_png(data: bytes, keep_metadata: bool) -> Picture:
    """Read a PNG file; arguments as for `read`.

    Raises:
        PictureError: the file is damaged or can't be kept exactly. The decoders raise exceptions of
            other types for damaged files.
    """
    parts: dict[bytes, list[bytes]] = {}
    for name, body in png_chunks(data, keep_metadata):
        if not name[0] & 32 and name not in CRITICAL:  # a capital marks a critical chunk
            raise PictureError(f"the picture has an unknown critical chunk {chunk_name(name)}")
        parts.setdefault(name, []).append(body)
    for name, bodies in list(parts.items()):
        if len(bodies) > 1 and name in SINGLE:
            if name in METADATA and not keep_metadata:
                del parts[name]
                continue
            raise damaged_chunk(name, f"it has several {chunk_name(name)} chunks")
    if b"acTL" in parts:
        raise PictureError("the picture is animated: only single pictures can be kept")
    first = {name: bodies[0] for name, bodies in parts.items()}
    depth, kind, size = _png_header(first.get(b"IHDR", b""))

    critical = [(name, b"".join(parts[name])) for name in CRITICAL if name in parts]
    bare = png_file(critical)  # so that decoders neither apply transparency nor parse texts
    # Pillow checks the size. It would reduce 16-bit colours to 8 bits, so imagecodecs decodes them.
    with Image.open(io.BytesIO(bare), formats=("PNG",)) as image:
        _check_raster(b"".join(parts.get(b"IDAT", ())), size)
        samples = _deep_samples(critical, size) if depth == 16 else np.asarray(image)
    if depth == 1 and kind == 0:
        samples = samples.astype(np.uint8) * 255

    palette, transparency = None, first.get(b"tRNS")
    if kind == 3:
        if b"PLTE" not in first:
            raise damaged("it has no palette")
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
            icc = inflated(profile[1:], METADATA_LIMIT, "colour profile", MetadataError)
    chunks = tuple(
        (name, body)
        for group, names in STORED.items()
        for name in names
        for body in parts.get(name, ())
        if keep_metadata or (group != Chunk.TEXT and len(body) <= _LONGEST)
    )
    return Picture(native(samples), palette, transparency, bilevel, icc, exif, chunks)


def _png_header(body: bytes) -> tuple[int, int, int]:
    """Depth and colour type of a PNG file, and the size of its filtered rows in bytes."""
    if len(body) == 13:
        width, height, depth, kind, _, _, interlaced = struct.unpack(">IIBBBBB", body)
        if width and height and depth in _PNG_DEPTHS.get(kind, ()):
            passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
            return depth, kind, sum(_size_of_pass(body, *each)[2] for each in passes)
    raise damaged("its header is not a valid PNG header")


def _size_of_pass(header: bytes, top: int, left: int, down: int, right: int) -> tuple[int, ...]:
    """Rows and columns of a pass, and the size of its filtered rows in bytes."""
    width, height, depth, kind, *_ = struct.unpack(">IIBBBBB", header)
    rows, columns = -((top - height) // down), -((left - width) // right)
    bits = columns * depth * {2: 3, 4: 2, 6: 4}.get(kind, 1)
    return rows, columns, rows * (1 + (bits + 7) // 8) if columns > 0 else 0


def _deep_samples(critical: Sequence[tuple[bytes, bytes]], size: int) -> np.ndarray:
    """The samples of 16 bits of a PNG file, uint16 (H, W) or (H, W, C).

    The passes of an interlaced file are decoded one by one, because libpng prints a warning when
    imagecodecs decodes all of them.

    Args:
        critical: names and bodies of the critical chunks.
        size: size of the filtered rows in bytes.
    """
    chunks = dict(critical)
    header = chunks[b"IHDR"]
    if header[-1] != 1:
        return imagecodecs.png_decode(png_file(critical))
    filtered = zlib.decompressobj().decompress(chunks[b"IDAT"], size)
    width, height = struct.unpack_from(">II", header)
    samples, start = None, 0
    for top, left, down, right in _ADAM7:
        rows, columns, length = _size_of_pass(header, top, left, down, right)
        if not length:
            continue
        own = struct.pack(">II", columns, rows) + header[8:-1] + b"\0"  # not interlaced
        data = zlib.compress(filtered[start : start + length], 0)
        start += length
        part = imagecodecs.png_decode(png_file([(b"IHDR", own), (b"IDAT", data), (b"IEND", b"")]))
        if samples is None:
            samples = np.empty((height, width, *part.shape[2:]), part.dtype)
        samples[top::down, left::right] = part
    assert samples is not None  # the first pass has at least one pixel
    return samples


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
        raise damaged("its samples can't be decompressed") from error
    if found < size:
        raise damaged(f"it is truncated: it has {found} of {size} bytes of samples")
    if not (more or decompressor.eof):
        raise damaged("it is truncated: the checksum of its samples is missing")


def to_png(picture: Picture) -> bytes:
    """Encode the picture as a PNG file with all its metadata."""
    samples = picture.samples
    height, width, channels = (*samples.shape, 1)[:3]
    if picture.palette is None and not picture.bilevel and max(height, width) <= _LIBPNG_SIDE:
        encoded = png_chunks(bytes(imagecodecs.png_encode(samples)))
        data = b"".join(body for name, body in encoded if name == b"IDAT")
    else:
        # Each row begins with its filter type: none, which is best for indices and single bits.
        rows = np.packbits(samples > 0, axis=1) if picture.bilevel else big_endian(samples)
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
    return png_file([*chunks, (b"IDAT", data), (b"IEND", b"")])

"""Picture files and pictures for the tests, and comparisons."""

import io
import struct
import zlib
from dataclasses import replace

import numpy as np
from PIL import Image

from italic.coding.files.container import Chunk, Colour, Record
from italic.coding.files.pictures import (
    Picture,
    join,
    read,
    split,
    to_png,
    without_samples,
)

RNG = np.random.default_rng(0)
SIZE = (13, 21)
ICC = b"a profile is only kept, never looked into" * 5
EXIF = Image.Exif()
EXIF[274] = 6  # orientation: rotated by 90 degrees
EXIF[271] = "maker"
EXIF_BYTES = EXIF.tobytes().removeprefix(b"Exif\0\0")


def noise(*channels: int, bits: int = 8, dtype: type = np.uint8) -> np.ndarray:
    return RNG.integers(0, 2**bits, (*SIZE, *channels), dtype=dtype)


def saved(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    image.save(file, kind, **options)
    return file.getvalue()


def png(
    depth: int, kind: int, rows: bytes, *chunks: tuple[bytes, bytes], raster: bytes = b""
) -> bytes:
    """Build a PNG file of SIZE from rows with their filter types, or from a compressed raster."""
    head = struct.pack(">IIBBBBB", SIZE[1], SIZE[0], depth, kind, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    raster = raster or zlib.compress(rows)
    for name, body in ((b"IHDR", head), *chunks, (b"IDAT", raster), (b"IEND", b"")):
        data += struct.pack(">I", len(body)) + name + body
        data += struct.pack(">I", zlib.crc32(name + body))
    return data


def packed_rows(samples: np.ndarray, depth: int) -> bytes:
    """PNG rows with samples of less than 8 bits."""
    bits = np.unpackbits(samples[..., None], axis=2)[..., -depth:].reshape(len(samples), -1)
    return np.pad(np.packbits(bits, axis=1), ((0, 0), (1, 0))).tobytes()


def paletted(indices: np.ndarray, palette: bytes) -> Image.Image:
    image = Image.fromarray(indices)
    image.putpalette(palette)
    return image


def assert_same(a: Picture, b: Picture) -> None:
    assert a.samples.dtype == b.samples.dtype and a.samples.dtype.isnative
    np.testing.assert_array_equal(a.samples, b.samples)
    for name in ("colour", "palette", "transparency", "bilevel", "icc", "exif", "chunks"):
        assert getattr(a, name) == getattr(b, name), name


def round_trip(picture: Picture) -> tuple[Colour, np.ndarray, dict[Chunk, bytes]]:
    """Check the round trips by split and join and by PNG; return the parts."""
    colour, main, chunks = split(picture)
    assert main.shape == (*picture.samples.shape[:2], 3) and main.dtype == np.uint8
    assert main.flags.c_contiguous
    Record(1, *main.shape[:2], 0, colour, tuple(chunks))  # such chunks can be stored
    joined = join(colour, main, chunks)
    assert_same(joined, picture)
    black = without_samples(colour, chunks)
    assert_same(black, replace(picture, samples=black.samples))
    assert black.samples.size < 5 and not black.samples.any()
    assert_same(read(to_png(joined)), picture)
    return colour, main, dict(chunks)


def tiff(samples: np.ndarray, byteorder: str = "<", tags: dict[int, int] | None = None) -> bytes:
    """An uncompressed TIFF file of one strip; `tags` overrides or adds SHORT values."""
    height, width, channels = (*samples.shape, 1)[:3]
    values: dict[int, int | tuple[int, ...]] = {
        256: width,
        257: height,
        258: (8 * samples.itemsize,) * channels,
        259: 1,
        262: 2 if channels > 2 else 1,
        273: 0,
        277: channels,
        278: height,
        279: samples.nbytes,
        **({338: 2} if channels in (2, 4) else {}),
        **(tags or {}),
    }
    start = 8 + 2 + 12 * len(values) + 4
    beyond, entries = b"", b""
    values[273] = start + 8
    for tag, value in sorted(values.items()):
        several = value if isinstance(value, tuple) else (value,)
        body = struct.pack(f"{byteorder}{len(several)}H", *several)
        if len(body) > 4:
            beyond, body = body.ljust(8, b"\0"), struct.pack(f"{byteorder}I", start)
        entries += struct.pack(f"{byteorder}HHI", tag, 3, len(several)) + body.ljust(4, b"\0")
    head = {"<": b"II", ">": b"MM"}[byteorder] + struct.pack(f"{byteorder}HI", 42, 8)
    raster = samples.astype(samples.dtype.newbyteorder(byteorder)).tobytes()
    count = struct.pack(f"{byteorder}H", len(values))
    return head + count + entries + bytes(4) + beyond.ljust(8, b"\0") + raster

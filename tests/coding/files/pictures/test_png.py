import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from italic.coding.files.container import Chunk, Colour
from italic.coding.files.pictures import (
    Picture,
    PictureError,
    from_array,
    read,
    to_png,
)
from italic.coding.files.pictures.planes import pack_palette
from italic.coding.files.pictures.png import _ADAM7
from italic.coding.files.pictures.png_chunks import png_chunks, png_file
from tests.coding.files.pictures.samples import (
    EXIF,
    EXIF_BYTES,
    ICC,
    SIZE,
    assert_same,
    noise,
    packed_rows,
    png,
    round_trip,
    saved,
)


@pytest.mark.parametrize(
    ("channels", "dtype", "colour"),
    [
        ((), np.uint8, Colour.GREY),
        ((2,), np.uint8, Colour.GREY_ALPHA),
        ((3,), np.uint8, Colour.RGB),
        ((4,), np.uint8, Colour.RGB_ALPHA),
        ((), np.uint16, Colour.GREY16),
        ((2,), np.uint16, Colour.GREY_ALPHA16),
        ((3,), np.uint16, Colour.RGB16),
        ((4,), np.uint16, Colour.RGB_ALPHA16),
    ],
)
def test_png_of_each_kind_of_samples(
    channels: tuple[int, ...], dtype: type, colour: Colour, tmp_path: Path
) -> None:
    samples = noise(*channels, bits=8 * np.dtype(dtype).itemsize, dtype=dtype)
    path = tmp_path / "a.png"
    path.write_bytes(imagecodecs.png_encode(samples))
    picture = read(path)
    np.testing.assert_array_equal(picture.samples, samples)
    assert picture.samples.dtype == dtype
    found, main, chunks = round_trip(picture)
    assert found == colour
    high = (samples >> 8 if dtype == np.uint16 else samples).astype(np.uint8)
    high = high.reshape(*SIZE, -1)
    colours = high[..., :3] if high.shape[2] > 2 else high[..., :1].repeat(3, axis=2)
    np.testing.assert_array_equal(main, colours)
    assert (Chunk.ALPHA in chunks) == (channels in ((2,), (4,)))
    assert (Chunk.LOW_BYTES in chunks) == (dtype == np.uint16)


@pytest.mark.parametrize(("kind", "channels"), [(0, ()), (4, (2,)), (2, (3,)), (6, (4,))])
def test_interlaced_png_of_16_bits(
    kind: int, channels: tuple[int, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    samples = noise(*channels, bits=16, dtype=np.uint16)
    height, width = SIZE
    rows = b"".join(
        b"\0" + row.astype(">u2").tobytes()
        for top, left, down, right in _ADAM7
        for row in samples[top::down, left::right]
        if row.size
    )
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 1)
    data = png_file([(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])
    assert np.array_equal(read(data).samples, samples)
    assert capfd.readouterr() == ("", "")  # libpng prints warnings


def test_interlaced_png_of_two_pixels() -> None:
    # Two of the seven passes of a 1×2 picture are not empty: one pixel each.
    rows = b"\0" + bytes(range(6)) + b"\0" + bytes(range(6, 12))
    data = bytearray(png(16, 2, rows))
    data[16:29] = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 1)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    assert read(bytes(data)).samples.tolist() == [[[0x1, 0x203, 0x405], [0x607, 0x809, 0xA0B]]]


def test_bilevel() -> None:
    bits = noise(bits=1)
    for kind in ("PNG", "BMP", "TIFF", "PPM"):
        picture = read(saved(Image.fromarray(bits * 255).convert("1"), kind))
        np.testing.assert_array_equal(picture.samples, bits * 255)
        assert round_trip(picture)[0] == Colour.BILEVEL
    assert to_png(picture)[24:26] == b"\1\0"
    # With a transparent colour it is 8-bit grey, and the colour key is scaled too.
    picture = read(png(1, 0, packed_rows(bits, 1), (b"tRNS", b"\0\1")))
    assert round_trip(picture)[0] == Colour.GREY
    assert picture.transparency == b"\0\xff"


@pytest.mark.parametrize("depth", [2, 4])
def test_gray_of_2_and_4_bits_is_scaled(depth: int) -> None:
    samples = noise(bits=depth)
    factor = 255 // (2**depth - 1)
    picture = read(png(depth, 0, packed_rows(samples, depth), (b"tRNS", b"\0\2")))
    np.testing.assert_array_equal(picture.samples, samples * factor)
    assert picture.transparency == bytes([0, 2 * factor])
    assert round_trip(picture)[0] == Colour.GREY


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palette(depth: int) -> None:
    indices = noise(bits=depth)
    palette = (bytes(range(256)) * 3)[: 3 << depth]  # all different
    picture = read(png(depth, 3, packed_rows(indices, depth), (b"PLTE", palette)))
    np.testing.assert_array_equal(picture.samples, indices)
    colour, main, chunks = round_trip(picture)
    assert (colour, set(chunks)) == (Colour.PALETTE, {pack_palette(palette)[0]})
    np.testing.assert_array_equal(main, np.frombuffer(palette, np.uint8).reshape(-1, 3)[indices])
    round_trip(replace(picture, transparency=b"\0\x80"))


def test_metadata_of_png() -> None:
    texts = PngInfo()
    texts.add_text("Title", "a picture")
    texts.add_text("Long", "very " * 100, zip=True)
    texts.add_itxt("Autor", "Jürgen", "de")
    texts.add(b"gAMA", struct.pack(">I", 45455))
    texts.add(b"prVt", b"not kept")
    data = saved(noise(3), icc_profile=ICC, exif=EXIF, pnginfo=texts, dpi=(300, 300))
    picture = read(data)
    assert (picture.icc, picture.exif) == (ICC, EXIF_BYTES)
    names = [name for name, _ in picture.chunks]
    assert names == [b"gAMA", b"tEXt", b"zTXt", b"iTXt", b"pHYs"]
    assert picture.samples.shape == (*SIZE, 3)  # the orientation is not applied
    round_trip(picture)
    with Image.open(io.BytesIO(to_png(picture))) as image:
        assert image.info["icc_profile"] == ICC and image.getexif()[274] == 6
        assert image.text["Title"] == "a picture" and image.info["gamma"] == 0.45455

    plain = read(data, keep_metadata=False)
    assert plain.icc is None and plain.exif is None
    assert [name for name, _ in plain.chunks] == [b"gAMA", b"pHYs"]


@pytest.mark.parametrize(
    ("depth", "kind", "row"), [(1, 0, 3), (4, 3, 11), (8, 2, 63), (16, 6, 168)]
)
def test_png_files_without_their_last_rows_are_refused(depth: int, kind: int, row: int) -> None:
    palette = [(b"PLTE", bytes(48))] if kind == 3 else []
    rows = bytes((1 + row) * SIZE[0])
    for whole in (rows, rows + b"more"):
        assert read(png(depth, kind, whole, *palette)).samples.shape[:2] == SIZE
    for short in (rows[: -1 - row], rows[:-1], rows[: 1 + row], b""):
        with pytest.raises(PictureError, match=f"has {len(short)} of {len(rows)} bytes"):
            read(png(depth, kind, short, *palette))


def test_interlaced_png_without_its_last_rows_is_refused() -> None:
    passes = (np.mgrid[:13, :21][:, y::h, x::w].shape[1:] for y, x, h, w in _ADAM7)
    size = sum(rows * (1 + columns) for rows, columns in passes)

    def interlaced(rows: bytes) -> bytes:
        data = bytearray(png(8, 0, rows))
        data[28] = 1
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        return bytes(data)

    assert read(interlaced(bytes(size))).samples.shape == SIZE
    with pytest.raises(PictureError, match=f"has {size - 22} of {size} bytes"):
        read(interlaced(bytes(size - 22)))


@pytest.mark.parametrize("depth", [8, 16])
def test_png_samples_without_their_checksum_are_refused(depth: int) -> None:
    rows = zlib.compress(bytes((1 + 21 * depth // 8) * 13))
    for end, sentence in (
        (b"", "checksum of its samples is missing"),
        (b"\0\0\0\0", "can't be decompressed"),
    ):
        with pytest.raises(PictureError, match=sentence):
            read(png(depth, 0, b"", raster=rows[:-4] + end))


def damaged(data: bytes, *kinds: bytes) -> bytes:
    """The file with wrong checksums of these chunks."""
    bad = bytearray(data)
    for kind in kinds:
        start = data.index(kind)
        bad[start + 4 + int.from_bytes(data[start - 4 : start], "big")] ^= 1
    return bytes(bad)


@pytest.mark.parametrize(
    ("chunks", "bad"),
    [
        ([(b"iCCP", b"x\0\0bad")], []),
        ([(b"iCCP", b"x\0\0" + zlib.compress(bytes(2**25)))], []),
        ([(b"eXIf", EXIF_BYTES)] * 2, []),
        ([(b"gAMA", bytes(4))] * 2, []),
        ([(b"gAMA", bytes(2**24 + 1))], []),
        ([(b"tEXt", b"a\0b")] * 1025, []),
        *(
            ([(kind, bytes(4))], [kind])
            for kind in (b"iCCP", b"eXIf", b"tEXt", b"zTXt", b"iTXt", b"gAMA", b"pHYs", b"tIME")
        ),
    ],
)
def test_damaged_metadata_of_png_are_left_out_on_demand(
    chunks: list[tuple[bytes, bytes]], bad: list[bytes]
) -> None:
    samples = noise()
    rows = np.pad(samples, ((0, 0), (1, 0))).tobytes()
    data = damaged(png(8, 0, rows, (b"tRNS", b"\0\7"), *chunks), *bad)
    with pytest.raises(PictureError, match=r"; --drop-metadata leaves metadata out$"):
        read(data)
    picture = read(data, keep_metadata=False)
    assert_same(picture, Picture(samples, transparency=b"\0\7"))


def test_chunks_after_the_samples_that_decoders_ignore_are_refused() -> None:
    *file, end = png_chunks(png(8, 0, bytes(22 * 13)))
    chunks = {kind: bytes(2) for kind in (b"tRNS", b"PLTE", b"gAMA", b"pHYs", b"iCCP")}
    for kind, body in chunks.items():
        late = png_file([*file, (kind, body), end])
        with pytest.raises(PictureError, match=f"its {kind.decode()} chunk follows the samples"):
            read(late)
        if kind not in (b"tRNS", b"PLTE"):
            assert read(late, keep_metadata=False).chunks == ()
    picture = read(png_file([*file, (b"tEXt", b"a\0b"), (b"eXIf", EXIF_BYTES), end]))
    assert picture.exif == EXIF_BYTES and picture.chunks == ((b"tEXt", b"a\0b"),)


def test_what_is_no_metadata_is_refused_when_damaged() -> None:
    data = png(8, 0, bytes(22 * 13), (b"tRNS", b"\0\7"))
    for kind in (b"tRNS", b"IDAT", b"IHDR"):
        with pytest.raises(PictureError, match=f"its {kind.decode()} chunk .* checksum$"):
            read(damaged(data, kind), keep_metadata=False)
    with pytest.raises(PictureError, match="its tRNz chunk"):  # the transparency is not recognised
        read(data.replace(b"tRNS", b"tRNz"), keep_metadata=False)


def test_sides_longer_than_libpng_takes() -> None:
    round_trip(from_array(np.zeros((1, 10**6 + 1, 2), np.uint8)))

import io
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from italic.coding.files.container import Chunk, Colour, Record
from italic.coding.files.pictures import (
    METADATA_LIMIT,
    Picture,
    PictureError,
    from_array,
    join,
    read,
    split,
    to_png,
    without_samples,
)
from italic.coding.files.pictures.png import _ADAM7

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


@pytest.mark.parametrize(
    ("channels", "dtype", "colour"),
    [
        ((), np.uint8, Colour.GRAY),
        ((2,), np.uint8, Colour.GRAY_ALPHA),
        ((3,), np.uint8, Colour.RGB),
        ((4,), np.uint8, Colour.RGB_ALPHA),
        ((), np.uint16, Colour.GRAY16),
        ((2,), np.uint16, Colour.GRAY_ALPHA16),
        ((3,), np.uint16, Colour.RGB16),
        ((4,), np.uint16, Colour.RGBA16),
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


def test_interlaced_png_of_16_bits() -> None:
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
    assert round_trip(picture)[0] == Colour.GRAY
    assert picture.transparency == b"\0\xff"


@pytest.mark.parametrize("depth", [2, 4])
def test_gray_of_2_and_4_bits_is_scaled(depth: int) -> None:
    samples = noise(bits=depth)
    factor = 255 // (2**depth - 1)
    picture = read(png(depth, 0, packed_rows(samples, depth), (b"tRNS", b"\0\2")))
    np.testing.assert_array_equal(picture.samples, samples * factor)
    assert picture.transparency == bytes([0, 2 * factor])
    assert round_trip(picture)[0] == Colour.GRAY


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palette(depth: int) -> None:
    indices = noise(bits=depth)
    palette = (bytes(range(256)) * 3)[: 3 << depth]  # all different
    picture = read(png(depth, 3, packed_rows(indices, depth), (b"PLTE", palette)))
    np.testing.assert_array_equal(picture.samples, indices)
    colour, main, chunks = round_trip(picture)
    assert (colour, set(chunks)) == (Colour.PALETTE, {Chunk.PALETTE})
    np.testing.assert_array_equal(main, np.frombuffer(palette, np.uint8).reshape(-1, 3)[indices])
    round_trip(replace(picture, transparency=b"\0\x80"))


def test_palette_with_equal_colours() -> None:
    palette = bytes([9, 8, 7, 1, 2, 3, 9, 8, 7, 9, 8, 7, 5, 5, 5])
    indices = noise(bits=2)
    data = saved(paletted(indices, palette), transparency=bytes([0, 255, 10, 20]))
    picture = read(data)
    assert picture.palette[: len(palette)] == palette
    _, _, chunks = round_trip(picture)
    assert Chunk.LOW_BYTES in chunks
    # If only the first of equal colours occurs, there is no chunk of ranks.
    _, _, chunks = round_trip(replace(picture, samples=np.minimum(indices, 1)))
    assert Chunk.LOW_BYTES not in chunks


@pytest.mark.parametrize(
    ("samples", "key"),
    [
        (noise(), b"\0\7"),
        (noise(3), b"\0\1\0\3\0\5"),
        (noise(bits=16, dtype=np.uint16), b"\7\7"),
        (noise(3, bits=16, dtype=np.uint16), bytes(range(6))),
    ],
)
def test_a_transparent_colour_is_kept(samples: np.ndarray, key: bytes) -> None:
    picture = replace(from_array(samples), transparency=key)
    round_trip(picture)
    if samples.shape == (*SIZE, 3) and samples.dtype == np.uint8:
        with Image.open(io.BytesIO(to_png(picture))) as image:
            assert image.info["transparency"] == (1, 3, 5)


def test_planes_cost_what_is_in_them() -> None:
    samples = noise(4, bits=16, dtype=np.uint16)
    # 8 bits extended to 16 in both ways, and opaque pictures: a byte each.
    for low in (0, samples >> 8):
        of_8_bits = samples & 0xFF00 | low
        of_8_bits[..., 3] = 65535
        _, _, chunks = round_trip(from_array(of_8_bits))
        assert {kind: len(chunk) for kind, chunk in chunks.items()} == {
            Chunk.ALPHA: 1,
            Chunk.LOW_BYTES: 1,
        }
    y, x = np.mgrid[:256, :256].astype(np.uint8)
    smooth = np.dstack([noise()[:1, :1].repeat(256, 0).repeat(256, 1), x * 3 + y * 5])
    _, _, chunks = round_trip(from_array(smooth))
    assert len(chunks[Chunk.ALPHA]) < 300


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


def test_many_texts_make_one_chunk() -> None:
    texts = tuple((b"tEXt", b"%d\0text" % i) for i in range(100))
    _, _, chunks = round_trip(replace(from_array(noise(3)), chunks=texts))
    assert set(chunks) == {Chunk.TEXT}


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "TIFF"])
def test_metadata_of_other_files(kind: str) -> None:
    options = {} if kind == "TIFF" else {"exif": EXIF, "xmp": b"<x/>"}
    picture = read(saved(noise(3), kind, icc_profile=ICC, **options))
    assert picture.icc == ICC
    if kind != "TIFF":
        assert picture.exif == EXIF_BYTES
        assert picture.chunks == ((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x/>"),)
    round_trip(picture)


def test_xmp_of_tiff() -> None:
    tags = ImageFileDirectory_v2()
    tags.tagtype[700] = 1
    tags[700] = b"<x/>"
    assert read(saved(noise(), "TIFF", tiffinfo=tags)).chunks[0][1].endswith(b"\0<x/>")


@pytest.mark.parametrize(
    ("kind", "channels", "options"),
    [
        ("BMP", (), {}),
        ("BMP", (3,), {}),
        ("TIFF", (), {"compression": "tiff_lzw"}),
        ("TIFF", (2,), {}),
        ("TIFF", (3,), {"compression": "tiff_deflate"}),
        ("TIFF", (4,), {}),
        ("WEBP", (3,), {"lossless": True}),
        ("WEBP", (4,), {"lossless": True, "exact": True}),
        ("PPM", (), {}),
        ("PPM", (3,), {}),
    ],
)
def test_other_lossless_files(kind: str, channels: tuple[int, ...], options: dict) -> None:
    samples = noise(*channels)
    if kind == "TIFF" and channels in ((2,), (4,)):
        image = Image.fromarray(samples)
        data = saved(image, kind, **options)
        if channels == (2,):  # Pillow calls this alpha unspecified
            assert Image.open(io.BytesIO(data)).mode == "LA"
    else:
        data = saved(samples, kind, **options)
    picture = read(data)
    np.testing.assert_array_equal(picture.samples, samples)
    round_trip(picture)


@pytest.mark.parametrize("kind", ["BMP", "TIFF"])
def test_palettes_of_other_files(kind: str) -> None:
    indices, palette = noise(), RNG.bytes(768)
    picture = read(saved(paletted(indices, palette), kind))
    np.testing.assert_array_equal(picture.samples, indices)
    assert picture.palette == palette
    round_trip(picture)


def test_jpeg_as_decoded() -> None:
    for samples in (noise(), noise(3)):
        data = saved(samples, "JPEG")
        with Image.open(io.BytesIO(data)) as image:
            np.testing.assert_array_equal(read(data).samples, np.asarray(image))


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("channels", [(), (3,), (4,)])
def test_tiff_of_16_bits(channels: tuple[int, ...], byteorder: str) -> None:
    samples = noise(*channels, bits=16, dtype=np.uint16)
    picture = read(tiff(samples, byteorder))
    np.testing.assert_array_equal(picture.samples, samples)
    round_trip(picture)


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


@pytest.mark.parametrize(
    ("samples", "tags"),
    [
        (noise(3, bits=16, dtype=np.uint16), {284: 2}),  # a plane for each channel
        (noise(4), {338: 1}),  # premultiplied alpha
        (noise(4), {338: 0}),  # an unspecified channel, which Pillow would drop
        (noise(bits=16, dtype=np.uint16), {262: 0}),  # white is 0, which Pillow ignores
        (noise(), {339: 2}),  # signed
        (noise(3), {274: 6}),  # rotated
    ],
)
def test_tiff_files_that_pillow_would_change_are_refused(
    samples: np.ndarray, tags: dict[int, int]
) -> None:
    assert read(tiff(samples)).samples.shape == samples.shape
    with pytest.raises(PictureError, match=r"kept exactly|rotated"):
        read(tiff(samples, tags=tags))


def test_pnm_of_16_bits() -> None:
    for head, channels in ((b"P5 21\n13\n65535\n", ()), (b"P6# x\n21 # y\n13 65535 ", (3,))):
        samples = noise(*channels, bits=16, dtype=np.uint16)
        picture = read(head + samples.astype(">u2").tobytes())
        np.testing.assert_array_equal(picture.samples, samples)
        round_trip(picture)


def test_plain_pnm() -> None:
    assert read(b"P3 1 2 255 1 2 3\n4 5 255").samples.tolist() == [[[1, 2, 3]], [[4, 5, 255]]]
    assert read(b"P2 2 1 255\n7 # x\n\n008\n").samples.tolist() == [[7, 8]]
    deep = read(b"P2 1 1 65535 256 ").samples
    assert (deep.dtype, deep.tolist()) == (np.uint16, [[256]])
    picture = read(b"P1 #x\n3 2\n100 # 1\n0 1\n1")
    assert picture.samples.tolist() == [[0, 255, 255], [255, 0, 0]] and picture.bilevel


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"P6 1 1 100 abc", "samples of 0 to 100"),
        (b"P5 1 1 4095 ab", "samples of 0 to 4095"),
        (b"P6 1 1 255 abcabc", "several pictures"),
        (b"P6 99999 99999 65535 ab", "several pictures"),
        (b"P6 1 1 65535#comment\nabcdef", "begins with P"),
        (b"PyRGBA 1 1 255 abcd", "begins with P"),
        (b"Pf 1 1 -1.0\nabcd", "begins with P"),
        (b"P4 999999999 999999999 ", "several pictures"),
        (b"P4 0 0 ", "several pictures"),
        (b"P5", "begins with P"),
        (b"P", "begins with P"),
        *((2 * data, "several pictures") for data in (b"P4 8 2 ab", b"P1 2 1 01\n")),
        *((2 * data, "not numbers") for data in (b"P2 1 1 255 7\n", b"P3 1 1 255 1 2 3\n")),
        (b"P1 2 1 0", "several pictures"),
        (b"P1 2 1 0 0 0", "several pictures"),
        (b"P2 1 1 255 7 7", "several pictures"),
        (b"P2 1 1 255  ", "several pictures"),
        (b"P4 9 1 a", "several pictures"),
        (b"P1 2 1 07", "outside 0 to 1"),
        (b"P1 2 1 0-", "outside 0 to 1"),
        (b"P2 1 1 255 256", "outside 0 to 255"),
        (b"P2 1 1 255 99999999999999999999999", "outside 0 to 255"),
        (b"P2 1 1 255 1_0", "not numbers"),
        (b"P2 1 1 255 -1", "not numbers"),
    ],
)
def test_pnm_files_that_are_refused(data: bytes, sentence: str) -> None:
    with pytest.raises(PictureError, match=sentence):
        read(data)


def frames(kind: str) -> bytes:
    first, second = (Image.fromarray(noise(3)) for _ in range(2))
    return saved(first, kind, save_all=True, append_images=[second])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: saved(Image.new("CMYK", (4, 4)), "JPEG"), "samples of mode CMYK: convert"),
        (lambda: saved(Image.new("CMYK", (4, 4)), "TIFF"), "samples of mode CMYK"),
        (lambda: saved(Image.new("LAB", (4, 4)), "TIFF"), "samples of mode LAB"),
        (lambda: saved(Image.new("YCbCr", (4, 4)), "TIFF"), "samples of mode YCbCr"),
        (lambda: saved(noise().astype(np.float32), "TIFF"), "samples of mode F"),
        (lambda: saved(noise().astype(np.int32), "TIFF"), "samples of mode I"),
        (lambda: frames("PNG"), "the picture is animated"),
        (lambda: frames("WEBP"), "several pictures"),
        (lambda: frames("TIFF"), "several pictures"),
        (lambda: frames("MPO"), "several pictures"),
        (lambda: frames("GIF"), "this is not a PNG, BMP"),
        (lambda: b"some text\n", "this is not a PNG, BMP"),
        (lambda: b"", "this is not a PNG, BMP"),
        (lambda: saved(noise(3))[:-20], "truncated"),
        (lambda: saved(noise(3), "JPEG")[:-200], "truncated"),
        (lambda: saved(noise(3), "BMP")[:-200], "truncated"),
        (lambda: 2 * saved(noise(3)), "several pictures"),
        (lambda: png(8, 5, b""), "not a valid PNG header"),
        (lambda: png(8, 3, bytes(22 * 13)), "no palette"),
        (lambda: png(8, 3, bytes([0, 9] * 11 * 13), (b"PLTE", bytes(6))), "colour 9 of a palette"),
        (lambda: png(8, 3, bytes(22 * 13), (b"PLTE", bytes(5))), "palette of 5 bytes"),
        (lambda: png(8, 0, bytes(22 * 13), (b"tRNS", bytes(3))), "transparency"),
        (lambda: png(8, 0, bytes(22 * 13), (b"CgBI", b"")), "critical chunk CgBI"),
        (lambda: tiff(noise(), tags={330: 8}), "further pictures"),
    ],
)
def test_what_cannot_be_kept_is_refused(
    make: Callable[[], bytes], sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "picture"
    path.write_bytes(make())
    with pytest.raises(PictureError, match=sentence) as caught:
        read(path)
    assert str(caught.value).startswith(f"'{path}': ")
    assert "\n" not in str(caught.value)


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


def test_what_is_no_metadata_is_refused_when_damaged() -> None:
    data = png(8, 0, bytes(22 * 13), (b"tRNS", b"\0\7"))
    for kind in (b"tRNS", b"IDAT", b"IHDR"):
        with pytest.raises(PictureError, match=f"its {kind.decode()} chunk .* checksum$"):
            read(damaged(data, kind), keep_metadata=False)
    with pytest.raises(PictureError, match="its tRNz chunk"):  # the transparency is not recognised
        read(data.replace(b"tRNS", b"tRNz"), keep_metadata=False)


def test_damaged_profiles_of_other_files_are_left_out_on_demand() -> None:
    jpeg = saved(noise(3), "JPEG", icc_profile=ICC)
    bmp = bmp_with_profile(noise(3))
    for data in (jpeg.replace(b"ICC_PROFILE\0\1\1", b"ICC_PROFILE\0\1\2"), bmp[:-1]):
        with pytest.raises(PictureError, match=r"colour profile .*; --drop-metadata "):
            read(data)
        assert read(data, keep_metadata=False).icc is None


def test_tags_of_tiff_that_pillow_passes_over_are_refused() -> None:
    data = saved(noise(3), "TIFF", icc_profile=ICC)
    entry = data.index(struct.pack("<HHI", 34675, 7, len(ICC)))
    bad = data[: entry + 8] + struct.pack("<I", len(data)) + data[entry + 12 :]
    with (
        pytest.raises(PictureError, match=r"profile or XMP .*; --drop-metadata "),
        ignored(),
    ):
        read(bad)
    with ignored():
        assert read(bad, keep_metadata=False).samples.shape == (*SIZE, 3)
    data = tiff(noise(), tags={320: tuple(range(8))})
    entry = data.index(struct.pack("<HHI", 320, 3, 8))
    bad = data[: entry + 8] + struct.pack("<I", len(data)) + data[entry + 12 :]
    with pytest.raises(PictureError, match="its tag 320 can't be read"), ignored():
        read(bad)


def ignored() -> warnings.catch_warnings:
    """Pillow's warnings are not shown."""
    return warnings.catch_warnings(action="ignore")


def bmp_with_profile(samples: np.ndarray) -> bytes:
    height, width, _ = samples.shape
    raster = np.pad(samples.reshape(height, -1), ((0, 0), (0, -3 * width % 4))).tobytes()
    head = struct.pack("<IiiHHIIiiII", 124, width, height, 1, 24, 0, len(raster), 0, 0, 0, 0)
    head = (head.ljust(56, b"\0") + b"DEBM").ljust(112, b"\0")
    head += struct.pack("<III", 124 + len(raster), len(ICC), 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 138) + head + raster + ICC


def test_profile_of_bmp() -> None:
    samples = noise(3)
    picture = read(bmp_with_profile(samples))
    np.testing.assert_array_equal(picture.samples[::-1, :, ::-1], samples)
    assert picture.icc == ICC


def test_absurd_sizes_and_missing_files_are_refused(tmp_path: Path) -> None:
    for depth in (8, 16):
        data = bytearray(png(depth, 2, b"\0"))
        data[16:24] = struct.pack(">II", 10**5, 10**5)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        with pytest.raises(PictureError, match="exceeds limit"):
            read(bytes(data))
    with pytest.raises(PictureError, match=r"none.png': .*No such file"):
        read(tmp_path / "none.png")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "JPEG", "PPM"])
def test_damaged_files_read_or_raise_picture_errors(kind: str) -> None:
    data = saved(noise(3), kind, exif=EXIF, icc_profile=ICC)
    for _ in range(60):
        bad = bytearray(data)
        for position in RNG.integers(0, min(len(bad), 500), 2):
            bad[position] = RNG.integers(0, 256)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read(bytes(bad[: RNG.integers(1, 2 * len(bad))]))
        except PictureError as error:
            assert str(error)


def rich() -> Picture:
    """A picture with most types of chunks."""
    samples = noise(4, bits=16, dtype=np.uint16)
    texts = ((b"gAMA", bytes(4)), (b"tEXt", b"a\0b"), (b"pHYs", bytes(9)))
    return replace(from_array(samples), icc=ICC, exif=EXIF_BYTES, chunks=texts)


def test_damaged_chunks_raise_picture_errors() -> None:
    palette = Picture(noise(bits=2), bytes([1, 2, 3] * 4), transparency=b"\1")
    for picture in (rich(), palette):
        colour, main, chunks = split(picture)
        for i, (kind, content) in enumerate(chunks):
            others = chunks[:i] + chunks[i + 1 :]
            for bad in (b"", content[:-1], content + b"\0", content[:5], b"\xff" + content):
                with pytest.raises(PictureError):
                    join(colour, main, [*others, (kind, bad)])
            if kind not in (Chunk.TEXT, Chunk.OTHER):
                with pytest.raises(PictureError, match="several chunks"):
                    join(colour, main, [*chunks, (kind, content)])
            for _ in range(20):
                flipped = bytearray(content)
                flipped[RNG.integers(len(flipped))] ^= 1 << RNG.integers(8)
                try:
                    join(colour, main, [*others, (kind, bytes(flipped))])
                except PictureError as error:
                    assert str(error).startswith("the picture ")


@pytest.mark.parametrize(
    ("kind", "data", "sentence"),
    [
        (Chunk.TEXT, b"\0\0\0\1gAMAx", "other data than PNG chunks"),
        (Chunk.TEXT, b"\0\0\0\1tEX", "other data than PNG chunks"),
        (Chunk.TEXT, b"\0\0\0\2tEXtx", "other data than PNG chunks"),
        (Chunk.TEXT, b"\0\0\0\0tEXt" * 2000, "too many chunks"),
        (Chunk.GAMMA, b"\0\0\0\0gAMA" * 2, "several gAMA"),
        (Chunk.ALPHA, b"\0\0", "transparency"),
        (Chunk.LOW_BYTES, b"", "type 3"),
        (77, b"", "type 77"),
    ],
)
def test_foreign_chunks_are_refused(kind: int, data: bytes, sentence: str) -> None:
    with pytest.raises(PictureError, match=sentence):
        join(Colour.RGB, noise(3), [(kind, zlib.compress(data))])


def test_missing_chunks_and_main_pictures_of_another_kind_are_refused() -> None:
    for colour in set(Colour) - {Colour.RGB}:
        with pytest.raises(PictureError):
            join(colour, noise(3), [])
    _, main, chunks = split(Picture(noise(bits=1), bytes(range(6))))
    with pytest.raises(PictureError, match="does not have all colours"):
        join(Colour.PALETTE, main + 1, chunks)


def test_bombs_are_not_unpacked() -> None:
    bomb = zlib.compress(bytes(2**27), 9)
    main = noise(3)
    tracemalloc.start()
    for colour, chunks in (
        (Colour.RGB, [(Chunk.ICC, bomb)]),
        (Colour.RGB, [(Chunk.ALPHA, bomb)]),
        (Colour.RGB, [(Chunk.TEXT, bomb)]),
        (Colour.RGB_ALPHA, [(Chunk.ALPHA, b"\0" + bomb)]),
        (Colour.RGB16, [(Chunk.LOW_BYTES, b"\0" + bomb)]),
        (Colour.PALETTE, [(Chunk.PALETTE, bomb)]),
    ):
        with pytest.raises(PictureError, match="more than"):
            join(colour, main, chunks)
    # The limit also holds for the sum of all metadata.
    half = zlib.compress(bytes(METADATA_LIMIT // 2 + 1))
    with pytest.raises(PictureError, match="more than"):
        join(Colour.RGB, main, [(Chunk.ICC, half), (Chunk.EXIF, half)])
    assert tracemalloc.get_traced_memory()[1] < 4 * METADATA_LIMIT
    tracemalloc.stop()


def test_sides_longer_than_libpng_takes() -> None:
    round_trip(from_array(np.zeros((1, 10**6 + 1, 2), np.uint8)))


def test_arrays() -> None:
    for shape in ((4, 5), (4, 5, 2), (4, 5, 3), (4, 5, 4)):
        for kind in (np.uint8, np.uint16, ">u2"):
            array = RNG.integers(0, 256, shape).astype(kind)
            picture = from_array(array)
            np.testing.assert_array_equal(picture.samples, array)
            round_trip(picture)
    assert from_array(np.zeros((4, 5, 1), np.uint8)).samples.shape == (4, 5)
    for bad in (
        np.zeros((4, 5)),
        np.zeros((4, 5), np.uint32),
        np.zeros((4, 5), bool),
        np.zeros((4, 5, 5), np.uint8),
        np.zeros((4, 5, 0), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((5,), np.uint8),
        [[1]],
    ):
        with pytest.raises(PictureError, match="expected uint8 or uint16"):
            from_array(bad)  # type: ignore[arg-type]


def test_masked_arrays() -> None:
    array = np.ma.masked_equal(np.arange(6, dtype=np.uint8).reshape(2, 3), 4)
    with pytest.raises(PictureError, match="masked samples"):
        from_array(array)
    assert from_array(array.filled(0)).samples[1, 1] == 0


@pytest.mark.parametrize("source", [None, 5, bytearray(3000), io.BytesIO()])
def test_sources_that_are_neither_paths_nor_bytes(source: object) -> None:
    with pytest.raises(PictureError, match="expected the path of a picture file") as caught:
        read(source)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 200


def test_pictures_check_themselves() -> None:
    gray = noise()
    for bad in (
        {"palette": b""},
        {"palette": bytes(4)},
        {"palette": bytes(771)},
        {"transparency": b"\0"},
        {"bilevel": True},
        {"icc": bytes(METADATA_LIMIT + 1)},
        {"chunks": ((b"prVt", b""),)},
        {"chunks": ((b"pHYs", b""),) * 2},
    ):
        with pytest.raises(PictureError):
            Picture(gray, **bad)  # type: ignore[arg-type]

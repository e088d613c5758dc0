import io
import tracemalloc
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from italic.coding.files.container import Chunk, Colour
from italic.coding.files.pictures import (
    METADATA_LIMIT,
    Picture,
    PictureError,
    from_array,
    join,
    read,
    split,
    to_png,
)
from tests.coding.files.pictures.samples import (
    EXIF_BYTES,
    ICC,
    RNG,
    SIZE,
    noise,
    paletted,
    round_trip,
    saved,
)


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


def test_many_texts_make_one_chunk() -> None:
    texts = tuple((b"tEXt", b"%d\0text" % i) for i in range(100))
    _, _, chunks = round_trip(replace(from_array(noise(3)), chunks=texts))
    assert set(chunks) == {Chunk.TEXT}


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
            if kind not in (Chunk.TEXT, Chunk.PIXEL_SIZE):
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
        (Chunk.COLOUR_SPACE, b"\0\0\0\0gAMA" * 2, "several gAMA"),
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


def test_palettes_are_stored_as_differences_where_these_are_shorter() -> None:
    """Both chunks are read; the differences are those of the format's description."""
    random = np.random.default_rng(0)
    scattered = random.integers(0, 256, (256, 3), np.uint8)
    ordered = random.integers(0, 9, (256, 3), np.uint8).cumsum(axis=0, dtype=np.uint8)
    for palette, kind in ((scattered, 2), (ordered, 9)):
        picture = Picture(noise(bits=8), palette.tobytes())
        colour, main, chunks = split(picture)
        assert chunks[0][0] == kind and len(chunks[0][1]) < (500 if kind == 9 else 800)
        channels = palette.T.astype(int)
        before = np.concatenate([np.zeros((3, 1), int), channels[:, :-1]], axis=1)
        differences = zlib.compress(((channels - before) % 256).astype(np.uint8).tobytes())
        for content in ((2, zlib.compress(picture.palette)), (9, differences)):
            joined = join(colour, main, [content, *chunks[1:]])
            assert joined.palette == picture.palette
            assert np.array_equal(joined.samples, picture.samples)
        with pytest.raises(PictureError, match="chunk of type 2, which does not belong"):
            join(colour, main, [(2, zlib.compress(picture.palette)), (9, differences), *chunks[1:]])
    for length in (0, 2, 4):
        with pytest.raises(PictureError, match=f"palette of {length} bytes"):
            join(colour, main, [(9, zlib.compress(bytes(length)))])


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
        (Colour.PALETTE, [(Chunk.PALETTE_DIFFERENCES, bomb)]),
    ):
        with pytest.raises(PictureError, match="more than"):
            join(colour, main, chunks)
    # The limit also holds for the sum of all metadata.
    half = zlib.compress(bytes(METADATA_LIMIT // 2 + 1))
    with pytest.raises(PictureError, match="more than"):
        join(Colour.RGB, main, [(Chunk.ICC, half), (Chunk.EXIF, half)])
    assert tracemalloc.get_traced_memory()[1] < 4 * METADATA_LIMIT
    tracemalloc.stop()

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from italic.coding.files.pictures import (
    PictureError,
    read,
)
from tests.coding.files.pictures.samples import EXIF, ICC, RNG, noise, png, saved, tiff


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


@pytest.mark.parametrize("source", [None, 5, bytearray(3000), io.BytesIO()])
def test_sources_that_are_neither_paths_nor_bytes(source: object) -> None:
    with pytest.raises(PictureError, match="expected the path of a picture file") as caught:
        read(source)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 200

"""JPEG files by the command-line program."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import italic
from tests.cli.program import Capture, assert_equal, run, tree

pytestmark = pytest.mark.slow


@pytest.fixture
def photo(here: Path) -> bytes:
    """A JPEG file with metadata, photo.jpg."""
    exif = Image.Exif()
    exif[271] = "maker"
    ramp = np.add.outer(np.arange(160), np.arange(160)).astype(np.uint8)
    Image.fromarray(ramp).convert("RGB").save("photo.jpg", exif=exif, quality=95)
    return Path("photo.jpg").read_bytes()


def test_a_jpeg_file_and_back(model: str, photo: bytes, capsys: Capture) -> None:
    assert run("compress", "photo.jpg", "--model", model) == 0
    assert Path("photo.italic").stat().st_size < len(photo)
    assert run("decompress", "photo.italic", "--force") == 0
    assert run("decompress", "photo.italic", "-o", "out/") == 0
    assert run("decompress", "photo.italic", "-o", "named") == 0
    for copy in ("photo.jpg", "out/photo.jpg", "named"):
        assert Path(copy).read_bytes() == photo
    capsys.readouterr()
    assert [run(command, "photo.italic") for command in ("info", "test")] == [0, 0]
    out = capsys.readouterr().out
    assert "one picture, 160 × 160 pixels, RGB, JPEG TRANSCODED\n" in out and ": ok\n" in out
    assert run("decompress", "photo.italic", "-o", "photo.png") == 1
    assert "it becomes a JPEG file: name a file in .jpg with -o" in capsys.readouterr().err
    assert run("decompress", "photo.italic", "-o", "x.jpg", "--region", "3,5,20,10") == 1
    assert run("decompress", "photo.italic", "-o", "x.png", "--region", "3,5,20,10") == 0
    with Image.open("x.png") as region, Image.open("photo.jpg") as full:
        assert region.tobytes() == full.crop((3, 5, 23, 15)).tobytes()
        assert region.getexif()[271] == "maker"
    capsys.readouterr()
    assert run("decompress", "photo.italic", "-o", "x", "--steps-done", "1") == 1
    assert "without steps" in capsys.readouterr().err
    assert run("compress", "photos/a.png", "-o", "a.italic", "--model", model) == 0
    assert run("decompress", "a.italic", "-o", "a.jpg") == 1
    assert "it becomes a PNG file: name a file in .png with -o" in capsys.readouterr().err


def test_a_jpeg_file_without_metadata_or_as_pixels(model: str, photo: bytes) -> None:
    options = ("photo.jpg", "--model", model, "--force")
    assert run("compress", *options, "--drop-metadata") == 0
    assert run("decompress", "photo.italic", "-o", "bare.jpg") == 0
    with Image.open("bare.jpg") as bare, Image.open("photo.jpg") as full:
        assert bare.tobytes() == full.tobytes() and full.getexif() and not bare.getexif()
    assert run("compress", *options, "--pixels") == 0
    assert run("decompress", "photo.italic", "-o", "back.png") == 0
    assert_equal("photo.jpg", "back.png")


def test_jpeg_files_in_an_archive(model: str, photo: bytes, capsys: Capture) -> None:
    for name in ("a.jpg", "sub/d.JPEG"):
        Path("photos", name).write_bytes(photo)
    options = ("archive", "photos", "-o", "all.italic", "--model", model)
    assert run(*options) == 0  # a.jpg and a.png do not collide
    assert run("test", "all.italic") == 0
    assert run("decompress", "all.italic", "-o", "back") == 0
    assert tree("back") == ["a.jpg", "a.png", "b.png", "sub/c.png", "sub/d.JPEG"]
    assert Path("back/a.jpg").read_bytes() == Path("back/sub/d.JPEG").read_bytes() == photo
    assert run(*options, "--pixels", "--force") == 1
    assert "would both be unpacked to a.png" in capsys.readouterr().err


def test_jpeg_files_from_python(photo: bytes) -> None:
    data = italic.compress_jpeg(photo)
    assert len(data) < len(photo) and italic.decompress_jpeg(data) == photo
    assert np.array_equal(italic.decompress(data), np.asarray(Image.open("photo.jpg")))
    with pytest.raises(ValueError, match="expected a picture that was read from a JPEG file"):
        italic.compress_jpeg(Path("photos/a.png").read_bytes())
    with pytest.raises(ValueError, match="can't be decoded"):
        italic.compress_jpeg(photo[:-300])
    with pytest.raises(ValueError, match="is not a JPEG file"):
        italic.decompress_jpeg(italic.compress(np.zeros((4, 4), np.uint8)))
    with pytest.raises(ValueError, match="25600 pixels, more than the limit of 100"):
        italic.decompress_jpeg(data, max_pixels=100)

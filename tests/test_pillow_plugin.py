from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, PngImagePlugin

import italic.pillow_plugin
from italic.coding.exact import make_exact
from italic.coding.files.container import ArchiveWriter, FileFormatError, unpack
from italic.coding.files.pictures import from_array
from italic.coding.model_files.installed import SEARCH_PATH
from italic.coding.model_files.loading import load_model
from italic.coding.model_files.model import save_model
from italic.coding.model_files.recipe import Recipe
from italic.compressor import decompression
from italic.models.rnan import RNAN
from tests.compressor.files import compress_pictures, to_file

NETWORK = {"features": 8, "groups": 1, "components": 2, "space_to_depth": 2}
NETWORK |= {"mask_branch": False, "recurrent": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    torch.manual_seed(0)

    def calibrate(network: torch.nn.Module) -> None:
        grey = torch.full((1, 3, 16, 16), 128.0)
        network(grey, grey, torch.ones(1, 1, 16, 16))

    network = make_exact(RNAN(**NETWORK).eval(), calibrate)
    save_model(path, network, Recipe(NETWORK, None, 4, "nested", "power", 1.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SEARCH_PATH, str(path.parent))
        yield path


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(128, 10, shape).clip(0, 255).astype(np.uint8)


def images() -> dict[str, Image.Image]:
    found = {
        "1": Image.fromarray(noise(9, 7) > 128),
        "L": Image.fromarray(noise(9, 7)),
        "LA": Image.fromarray(noise(9, 7, 2)),
        "RGB": Image.fromarray(noise(16, 16, 3)),
        "RGBA": Image.fromarray(noise(9, 7, 4)),
        "I;16": Image.fromarray(noise(9, 7).astype(np.uint16) * 257 + 5),
        "P": Image.fromarray(noise(9, 7, 3)).quantize(200),
    }
    assert all(image.mode == mode for mode, image in found.items())
    return found


def written(image: Image.Image, model: Path, **options: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, "ITALIC", model=model, **options)
    return file


@pytest.mark.parametrize("mode", italic.pillow_plugin.MODES.values())
def test_every_mode(model: Path, tmp_path: Path, mode: str) -> None:
    image = images()[mode]
    path = tmp_path / "x.italic"
    image.save(path, model=model)
    with Image.open(path) as again:
        assert (again.format, again.mode, again.size) == ("ITALIC", mode, image.size)
        assert np.array_equal(np.asarray(again), np.asarray(image))
        assert again.getpalette() == image.getpalette()
        again.load()


def test_opening_decodes_no_pixels(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(Image.fromarray(noise(16, 30, 3)), model)
    monkeypatch.delattr(decompression, "decompress_records")
    assert Image.open(file).size == (30, 16)


def test_damaged_files_are_refused_when_opened(model: Path) -> None:
    data = written(images()["L"], model).getvalue()
    for bad in (data[:-1], data[:40], *(data[:length] for length in range(4, 23))):
        with pytest.raises(FileFormatError, match=r"truncated|damaged"):
            Image.open(io.BytesIO(bad))


def test_steps_and_metadata(model: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "A")
    original = images()["RGB"]
    exif = Image.Exif()
    exif[0x010E] = "description"
    options = {"icc_profile": b"profile", "exif": exif, "pnginfo": text, "dpi": (300, 300)}
    file = written(original, model, steps=7, **options)
    assert unpack(file.getvalue())[1].steps == 7
    image = Image.open(file)
    for _ in range(2):  # before it is decoded, and after
        assert image.info["icc_profile"] == b"profile" and image.info["Title"] == "A"
        assert image.getexif()[0x010E] == "description" and round(image.info["dpi"][0]) == 300
        image.load()
    image = Image.open(file)
    del image.info["Title"]
    image.load()
    assert "Title" not in image.info


def test_exif_of_a_jpeg_file_is_there_once_it_is_decoded() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated
    jpeg = io.BytesIO()
    Image.fromarray(noise(16, 24, 3)).save(jpeg, "JPEG", exif=exif)
    image = Image.open(io.BytesIO(italic.compress_jpeg(jpeg.getvalue())))
    assert not image.getexif()
    image.load()
    assert image.getexif()[0x0112] == 6 and ImageOps.exif_transpose(image).size == (16, 24)


def test_metadata_that_pillow_cannot_read(model: Path) -> None:
    chosen = load_model(model)
    picture = replace(from_array(noise(9, 7)), chunks=((b"gAMA", b"x"),), exif=b"no EXIF")
    (record,) = compress_pictures([picture], chosen)
    with pytest.raises(FileFormatError, match=r"Pillow can't read the metadata .*decompress"):
        Image.open(io.BytesIO(to_file(record, chosen)))


@pytest.mark.parametrize("mode", italic.pillow_plugin.MODES.values())
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda image: pickle.loads(pickle.dumps(image))])
def test_copies_of_opened_images(model: Path, mode: str, copied: Callable) -> None:
    file = written(images()[mode], model, exif=b"Exif\0\0MM\0*\0\0\0\0")
    decoded = Image.open(file)
    decoded.load()
    for image in (Image.open(file), decoded):
        again = copied(image)
        assert (again.mode, again.info, again.format) == (mode, image.info, "ITALIC")
        assert np.array_equal(np.asarray(again), np.asarray(images()[mode]))
        assert again.getpalette() == image.getpalette()


@pytest.mark.parametrize("steps", [0, 2.5, "3"])
def test_invalid_steps(model: Path, steps: object) -> None:
    with pytest.raises(ValueError, match=r"^steps must be a whole number, 1 or more; got"):
        written(images()["L"], model, steps=steps)


def test_transparency(model: Path) -> None:
    image = images()["P"]
    image.info["transparency"] = bytes([0, 100, 255])
    again = Image.open(written(image, model))
    assert np.array_equal(np.asarray(again.convert("RGBA")), np.asarray(image.convert("RGBA")))


def test_an_opened_image_is_like_others(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.italic"
    original = images()["RGB"]
    original.save(path, model=model)
    with Image.open(path) as image:
        assert image.crop((1, 2, 5, 6)).size == (4, 4)
        assert np.array_equal(np.asarray(image.copy()), np.asarray(original))
        image.save(path, model=model)  # overwrite the file itself
    with Image.open(path) as image:
        image.save(tmp_path / "x.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "x.png")), np.asarray(original))


@pytest.mark.parametrize("mode", ["CMYK", "F", "I", "YCbCr"])
def test_other_modes_are_refused(model: Path, tmp_path: Path, mode: str) -> None:
    with pytest.raises(OSError, match=f"cannot write mode {mode}"):
        Image.new(mode, (4, 4)).save(tmp_path / "x.italic", model=model)
    assert not list(tmp_path.iterdir())


def test_colours_that_the_palette_lacks(model: Path) -> None:
    image = Image.fromarray(np.array([[0, 5]], np.uint8))
    image.putpalette([0, 0, 0, 9, 9, 9])
    with pytest.raises(OSError, match="palette"):
        written(image, model)


def test_what_pillow_cannot_hold(model: Path) -> None:
    deep = italic.compress(np.zeros((2, 3, 3), np.uint16), model)
    with pytest.raises(ValueError, match="Pillow has no mode for a picture of kind RGB16"):
        Image.open(io.BytesIO(deep))
    archive = io.BytesIO()
    ArchiveWriter(archive, bytes(8)).finish()
    with pytest.raises(ValueError, match="archive of pictures"):
        Image.open(archive)


def test_jpeg_files() -> None:
    """Their metadata are there once the picture is decoded."""
    exif = Image.Exif()
    exif[271] = "maker"
    for image in (images()["RGB"], images()["L"]):
        jpeg = io.BytesIO()
        image.save(jpeg, "JPEG", exif=exif)
        original = Image.open(jpeg)
        coded = Image.open(io.BytesIO(italic.compress_jpeg(jpeg.getvalue())))
        assert (coded.size, coded.mode, coded.info) == (original.size, original.mode, {})
        assert np.array_equal(np.asarray(coded), np.asarray(original))
        assert coded.info == original.info and coded.getexif()[271] == "maker"


def test_decompression_bombs(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = load_model(model)
    (record,) = compress_pictures([from_array(noise(16, 16))], chosen)
    file = io.BytesIO(to_file(record, chosen))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    with pytest.warns(Image.DecompressionBombWarning):
        image = Image.open(file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one warning is enough
        image.load()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(file)


def test_the_limit_of_the_work_can_be_changed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    original = images()["RGB"]
    original.save(file, "ITALIC", model=str(model))
    monkeypatch.setattr(italic.pillow_plugin, "MAX_WORK", 1)
    with pytest.raises(ValueError, match="more than the limit of 1 "):
        Image.open(io.BytesIO(file.getvalue())).load()
    monkeypatch.setattr(italic.pillow_plugin, "MAX_WORK", 2**20)
    assert np.array_equal(Image.open(io.BytesIO(file.getvalue())), original)

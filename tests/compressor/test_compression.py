"""Pictures to records, by the estimator or by a classical codec."""

from dataclasses import replace
from io import BytesIO
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import italic
import italic.pillow_plugin
from italic.coding.base_codes import bpg_file
from italic.coding.files.container import Chunk, Method
from italic.coding.files.pictures import from_array, read, to_png
from italic.coding.model_files import loading
from italic.coding.model_files.loading import load_model
from italic.coding.model_files.model import Model
from italic.compressor import arrays, compression, rivals, time_budget
from italic.compressor.compression import compress_each
from italic.compressor.decompression import decompress_records, from_file, model_for
from tests.compressor.examples import smooth
from tests.compressor.files import compress_pictures, to_file

pytestmark = pytest.mark.usefixtures("installed")


@pytest.mark.usefixtures("no_classical_codecs")
def test_pictures_of_any_sizes_in_one_call(model: Model) -> None:
    pictures = [
        from_array(array)
        for array in (*smooth(3, 16, 16), *smooth(1, 8, 20), smooth(1, 16, 16)[0, ..., 0])
    ]
    seen: list[float] = []
    records = compress_pictures(pictures, model, progress=seen.append)
    assert seen == sorted(seen) and seen[-1] == pytest.approx(1)
    assert {record.method for record in records[:4]} == {Method.ESTIMATOR}
    assert records == [compress_pictures([picture], model)[0] for picture in pictures]
    decoded = decompress_records(records, model)
    for one, other in zip(pictures, decoded, strict=True):
        assert np.array_equal(one.samples, other.samples)


@pytest.mark.usefixtures("no_classical_codecs")
@pytest.mark.parametrize("channels", [[0], [0, 1, 2], [0, 1, 2, 0]])
def test_pictures_with_unused_levels_are_coded_in_ranks(
    channels: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = load_model("cifar10")
    levels = smooth(1, 32, 40)[0][..., channels].squeeze() // 3
    picture = from_array(3 * levels)
    (record,) = compress_pictures([picture], trained, steps=4)
    assert record.chunks[-1][0] == Chunk.LEVELS
    (decoded,) = decompress_records([record], trained)
    assert np.array_equal(decoded.samples, picture.samples)
    (part,) = decompress_records([record], trained, region=(7, 3, 20, 10))
    assert np.array_equal(part.samples, picture.samples[3:13, 7:27])
    (early,) = decompress_records([record], trained, steps_done=2)
    assert not (early.samples % 3).any()
    if len(channels) == 3:
        ranks = levels - levels.min(axis=(0, 1))  # all levels in between are used
        assert italic.bits(3 * levels, trained) == italic.bits(ranks, trained)
    monkeypatch.setattr(rivals, "forms", lambda _, *form: [form])
    (plain,) = compress_pictures([picture], trained, steps=4)
    assert rivals.size(record) < 0.9 * rivals.size(plain)


@pytest.mark.usefixtures("no_classical_codecs")
@pytest.mark.parametrize("size", [(64, 1), (64, 2), (96, 5), (1, 64), (5, 96)])
@pytest.mark.parametrize("name", ["cifar10", "photo", "cifar10_ladder"])
def test_narrow_pictures_come_back(name: str, size: tuple[int, int]) -> None:
    model = load_model(name)
    originals = smooth(1, *size)
    coded = model.encode(originals, steps=8)
    assert np.array_equal(model.decode(coded, *size, steps=8), originals)
    (record,) = compress_pictures([from_array(originals[0])], model, steps=8)
    assert np.array_equal(decompress_records([record], model)[0].samples, originals[0])


@pytest.mark.usefixtures("no_classical_codecs")
@pytest.mark.parametrize("kind", ["RGB", "RGBA", "P"])
def test_toned_pictures_are_coded_as_grey(kind: str) -> None:
    trained = load_model("cifar10")
    grey = Image.fromarray(smooth(1, 32, 40)[0][..., 0])
    sepia = ImageOps.colorize(grey, "black", (255, 217, 166))
    if kind == "P":
        sepia = sepia.quantize(256, Image.Quantize.FASTOCTREE)
    file = BytesIO()
    sepia.convert(kind).save(file, "PNG")
    picture = read(file.getvalue())
    (record,) = compress_pictures([picture], trained, steps=4)
    assert record.chunks[-1][0] == Chunk.TONES
    (decoded,) = decompress_records([record], trained)
    assert np.array_equal(decoded.samples, picture.samples)
    assert decoded.palette == picture.palette
    (part,) = decompress_records([record], trained, region=(7, 3, 20, 10))
    assert np.array_equal(part.samples, picture.samples[3:13, 7:27])
    (early,) = decompress_records([record], trained, steps_done=2)
    colours = np.unique(np.array(sepia.convert("RGB")).reshape(-1, 3), axis=0)
    assert (early.samples[..., None, :] == colours).all(axis=-1).any(axis=-1).all()
    plain = italic.bits(np.array(grey.convert("RGB")), trained, 4)
    assert italic.bits(np.array(sepia.convert("RGB")), trained, 4) < 1.1 * plain


def test_pictures_with_unused_levels_are_coded_in_levels_if_these_are_smaller(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The estimator is given ranks that are noise."""
    image = smooth(1, 32, 40)[0]
    noise = np.random.default_rng(0).integers(0, 256, image.shape, np.uint8)
    (expected,) = compress_pictures([from_array(image)], model)
    monkeypatch.setattr(rivals, "forms", lambda _, *form: [form, (noise, [])])
    (record,) = compress_pictures([from_array(image)], model)
    assert record == expected
    budgets: list[float] = []
    monkeypatch.setattr(
        time_budget, "steps_within", lambda seconds, *_: budgets.append(seconds) or 2
    )
    compress_pictures([from_array(image)], model, seconds=60.0)
    assert budgets == [30.0]  # half of the time for each
    both = italic.bits(np.stack([image, noise]), model)
    monkeypatch.setattr(arrays, "forms", lambda _, *form: [form, (255 - form[0], [])])
    smaller = italic.bits(np.stack([image, noise]), model)
    assert (smaller <= both).all()


def test_noise_and_graphics_fall_back_on_what_is_smaller(model: Model) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    flat = np.zeros((32, 32, 3), np.uint8)
    for array, bound in ((noise, noise.size + 50), (flat, 100)):
        (record,) = compress_pictures([from_array(array)], model)
        file = to_file(record, model)
        assert record.method != Method.ESTIMATOR and len(file) < bound
        assert file[6:14] == bytes(8) and model_for(bytes(8), [record]) is None
        assert np.array_equal(from_file(file).samples, array)


def test_pictures_too_large_for_the_base_code_go_without_the_estimator(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bpg_file, "MAX_SIDE", 15)
    based = replace(model, recipe=replace(model.recipe, base={"qp": 40, "chroma": "420"}))
    array = smooth(1, 16, 16)[0]
    (record,) = compress_pictures([from_array(array)], based)
    assert record.method != Method.ESTIMATOR
    assert np.array_equal(from_file(to_file(record, based)).samples, array)


def test_more_steps_than_pixels_are_as_many_as_pixels(model: Model) -> None:
    (record,) = compress_pictures([from_array(smooth(1, 12, 12)[0])], model, 10**6)
    assert record.steps in (0, 144)


def test_a_forked_process_does_not_wait_for_the_threads_of_its_parent(model: Model) -> None:
    array, threads = smooth(1, 64, 64)[0], torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        data = italic.compress(array, model, 2)
        torch.ones(2**17).mul_(2)  # large enough for two threads

        def code() -> None:
            assert italic.compress(array, load_model("tiny"), 2) == data
            torch.ones(2**17).mul_(2)

        process = get_context("fork").Process(target=code)
        process.start()
        process.join(60)
        process.kill()
        assert process.exitcode == 0
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("exif", [b"garbage", b"II*\0", b"MM\0*\0\0\0\x08\xff\xff", b"\0" * 9])
def test_exif_that_pillow_cannot_read_is_kept(model: Model, exif: bytes) -> None:
    """EXIF is not parsed, neither for PNG files nor in the Pillow plugin."""
    file = to_png(replace(from_array(smooth(1, 8, 8)[0]), exif=exif))
    (record,) = compress_pictures([read(file)], model, 1)
    data = to_file(record, model)
    assert from_file(data).exif == read(to_png(from_file(data))).exif == exif
    with Image.open(BytesIO(data)) as image:
        image.load()
        image.save(BytesIO(), "ITALIC", model="tiny", steps=1)


def test_the_estimator_stops_when_it_cannot_win(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network is applied to few of the steps of a picture that a classical codec codes well."""
    seen: list[float] = []
    grating = (np.arange(64)[:, None] * 37 + np.arange(64) * 91).astype(np.uint8)
    flat = np.stack([grating, grating // 3, 255 - grating], 2)
    monkeypatch.setattr(rivals, "GRAPHICS_BITS", 0)
    (record,) = compress_pictures([from_array(flat)], model, 16, progress=seen.append)
    assert record.method != Method.ESTIMATOR and 0 < seen[-1] < 0.5


def test_models_are_not_loaded_for_pictures_without_use_for_them(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    monkeypatch.setattr(loading, "load_model", lambda name: loaded.append(name) or model)
    monkeypatch.setattr(compression, "model_for_pixels", lambda pixels: f"for {pixels}")
    flat, photograph = np.zeros((32, 32, 3), np.uint8), smooth(1, 16, 16)[0]
    (one,) = compress_each([from_array(flat)])
    assert one.model is None and one.png is not None and one.png > 0 and not loaded
    two = compress_each([from_array(each) for each in (flat, photograph, photograph[:8])])
    assert loaded == ["for 256", "for 128"] and [each.seconds > 0 for each in two] == [True] * 3
    assert np.array_equal(italic.decompress(two[1].to_file(), model), photograph)

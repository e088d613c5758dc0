import io
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import nn

import italic
import italic.pillow_plugin
from italic.coding.base_codes import bpg, bpg_file
from italic.coding.base_codes.base import NoBase
from italic.coding.exact import make_exact
from italic.coding.files.container import Chunk, Colour, FileFormatError, Method, Record, unpack
from italic.coding.files.pictures import from_array, read, to_png
from italic.coding.model_files import loading
from italic.coding.model_files.installed import SEARCH_PATH
from italic.coding.model_files.loading import load_model
from italic.coding.model_files.model import Model, ModelError, save_model
from italic.coding.model_files.recipe import Recipe
from italic.coding.streams.codec import Codec
from italic.coding.streams.entropy import StreamError
from italic.compressor import arrays, compression, rivals, time_budget, work_limit
from italic.compressor.compression import compress_each
from italic.compressor.decompression import decompress_records, from_file, model_for
from italic.compressor.enhancement import enhance
from italic.compressor.time_budget import steps_within
from italic.models.rnan import RNAN
from italic.schedule import Schedule
from tests.compressor.files import compress_pictures, to_file

NETWORK = {
    "features": 8,
    "groups": 1,
    "components": 2,
    "space_to_depth": 2,
    "mask_branch": False,
    "recurrent": False,
}


GREY = np.arange(20, dtype=np.uint8).reshape(4, 5)
FLAT_BPG = bpg.encode(np.zeros((8, 8, 3), np.uint8), 40)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    images = smooth(2, 16, 16)

    def calibrate(untouched: nn.Module) -> None:
        Codec(untouched, NoBase(), Schedule(), 2).encode(images)

    network = make_exact(RNAN(**NETWORK).eval(), calibrate)
    save_model(path, network, Recipe(NETWORK, None, 4, "nested", "power", 1.0))
    return load_model(path)


@pytest.fixture(autouse=True)
def installed(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path / "tiny.safetensors", model.network, model.recipe)
    monkeypatch.setenv(SEARCH_PATH, str(tmp_path))


@pytest.fixture
def no_classical_codecs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The untrained estimator would be worse than the classical codecs."""
    monkeypatch.setattr(rivals, "FAST", {})
    monkeypatch.setattr(rivals, "SLOW", {})
    monkeypatch.setattr(rivals, "_layouts", lambda _, __, main, chunks: [(main, chunks)])


def smooth(count: int, height: int, width: int) -> np.ndarray:
    """Noisy waves, which even an untrained estimator compresses."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    waves = 120 + 60 * np.sin(x / 5 + y / 7) + 20 * np.cos(x / 3)
    grey = waves[None, ..., None] + random.normal(0, 2, (count, height, width, 1))
    return (grey + random.normal(0, 2, (count, height, width, 3))).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(1, 1, 3), (16, 16, 3), (9, 5), (7, 8, 2), (6, 11, 4)])
def test_arrays_come_back(shape: tuple[int, ...], dtype: type) -> None:
    array = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, True)
    decoded = italic.decompress(italic.compress(array, "tiny", 3))
    assert decoded.dtype == dtype and np.array_equal(decoded, array)


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
def test_pictures_as_they_are_known_after_some_steps(model: Model) -> None:
    colour, grey = from_array(smooth(1, 16, 16)[0]), from_array(smooth(1, 16, 16)[0, ..., 0])
    records = compress_pictures([colour, grey], model)
    damaged = [replace(record, checksum=0) for record in records]
    for done in (0, 3):
        early = decompress_records(damaged, model, steps_done=done)
        assert [picture.samples.shape for picture in early] == [(16, 16, 3)] * 2
        assert not np.array_equal(early[0].samples, colour.samples)
    whole = decompress_records(records, model, steps_done=4)
    for picture, original in zip(whole, (colour, grey), strict=True):
        assert np.array_equal(picture.samples, original.samples)
    with pytest.raises(FileFormatError, match="not the one that was coded"):
        decompress_records(damaged, model, steps_done=4)
    with pytest.raises(ValueError, match="4 steps: expected from 0 to 4 of them; got 5"):
        decompress_records(records, model, steps_done=5)
    with pytest.raises(ValueError, match="as PNG, without steps"):
        decompress_records([replace(records[0], method=Method.PNG, steps=0)], None, steps_done=0)


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


@pytest.mark.usefixtures("no_classical_codecs")
def test_the_default_type_of_the_host_program_changes_nothing(model: Model) -> None:
    array = smooth(1, 16, 16)[0]
    file = italic.compress(array, model)
    torch.set_default_dtype(torch.float64)
    try:
        assert italic.compress(array, model) == file
        assert np.array_equal(italic.decompress(file, model), array)
    finally:
        torch.set_default_dtype(torch.float32)


def test_pictures_above_a_limit_are_refused(model: Model) -> None:
    file = italic.compress(smooth(1, 9, 5)[0], model)
    assert italic.decompress(file, model, max_pixels=45).shape == (9, 5, 3)
    with pytest.raises(ValueError, match="max_pixels"):
        italic.decompress(file, model, max_pixels=44)


def test_a_few_bytes_demand_no_long_work(model: Model) -> None:
    record = Record(Method.ESTIMATOR, 64, 64, 0, Colour.RGB, (), 4096, stream=b"\1" * 60)
    file = to_file(record, model)
    match = r"work for 20971520 pixels \(64 × 64 in 4096 steps\), more than the limit of 277504"
    start = time.process_time()
    with pytest.raises(ValueError, match=match):
        italic.decompress(file, model)
    assert time.process_time() - start < 5
    with pytest.raises(ValueError, match="raise max_work"):
        decompress_records([record], model, max_work=20971519)
    few = replace(record, steps=2)
    with pytest.raises(StreamError):
        decompress_records([few], model)
    with pytest.raises(ValueError, match="limit of 10239"):
        decompress_records([few], model, max_work=10239)


@pytest.mark.usefixtures("no_classical_codecs")
def test_nothing_is_written_that_would_be_refused_for_its_work(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = smooth(1, 16, 16)[0]
    assert unpack(italic.compress(array, model))[1].method == Method.ESTIMATOR
    monkeypatch.setattr(work_limit, "WORK", 0)
    monkeypatch.setattr(work_limit, "WORK_PER_BYTE", 1)
    file = italic.compress(array, model)
    assert unpack(file)[1].method == Method.RAW
    assert np.array_equal(italic.decompress(file), array)


@pytest.mark.usefixtures("no_classical_codecs")
def test_too_many_steps_for_a_picture_are_halved(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [from_array(array) for array in smooth(2, 16, 16)]
    monkeypatch.setattr(work_limit, "WORK", 0)
    # Work for 12 steps of 256 pixels, each as much as 1024 more: enough for raw samples, 768 bytes.
    monkeypatch.setattr(work_limit, "WORK_PER_BYTE", 20)
    for steps, fewer in ((4, 4), (12, 6), (40, 5)):
        records = compress_pictures(pictures, model, steps)
        assert [record.method for record in records] == [Method.ESTIMATOR] * 2
        assert [record.steps for record in records] == [fewer] * 2
        assert records == compress_pictures(pictures, model, fewer)
        decompress_records(records, model)


def test_pictures_that_take_too_much_work_are_not_coded_to_find_that_out(model: Model) -> None:
    flat = from_array(np.full((600, 600, 3), 9, np.uint8))
    seen: list[float] = []
    (record,) = compress_pictures([flat], model, 60, progress=seen.append)
    assert record.method not in (Method.ESTIMATOR, Method.RAW) and not seen


def test_more_steps_than_pixels_are_as_many_as_pixels(model: Model) -> None:
    (record,) = compress_pictures([from_array(smooth(1, 12, 12)[0])], model, 10**6)
    assert record.steps in (0, 144)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        *(
            (partial(italic.compress, GREY, steps=steps), "steps must be a whole number, 1 or more")
            for steps in (0, -1, 2.5, 4.0, "4", True, [4], float("nan"))
        ),
        *(
            (partial(italic.compress, array), "expected uint8 or uint16")
            for array in ("a.png", None, [[1]], GREY.astype(float), GREY[:0])
        ),
        *(
            (partial(call, model=model), "expected the name of an installed model or the path")
            for model in (5, b"tiny", "", ["tiny"])
            for call in (partial(italic.compress, GREY), partial(enhance, FLAT_BPG))
        ),
        *(
            (partial(call, data), "expected the bytes of a file, such as Path.* returns; got")
            for data in ("x.italic", Path("x.italic"), None, 5, io.BytesIO(), GREY)
            for call in (italic.decompress, enhance)
        ),
        *(
            (partial(call, value), "must be a list; got")
            for value in (None, 5)
            for call in (italic.compress_many, italic.decompress_many)
        ),
        (partial(italic.decompress, b"", max_work=10**400), "max_work must be a number of 0"),
        *(
            (partial(italic.load_model, 5000 * "x" + suffix), "there is no model")
            for suffix in ("", ".safetensors")
        ),
        *(
            (partial(italic.decompress, b"", max_pixels=most), "max_pixels must be a whole number")
            for most in (0, 1e6, "100", None)
        ),
        *(
            (partial(call, *data, max_work=most), "max_work must be a number of 0 or more")
            for most in (-1, float("nan"), "1")
            for call, data in ((italic.decompress, [b""]), (italic.decompress_many, [[]]))
        ),
        *((partial(enhance, FLAT_BPG, steps=steps), "steps must be") for steps in (0, 1.5, None)),
        (partial(compress_pictures, [], None, 0), "steps must be"),
        *(
            (partial(compress_pictures, [], None, seconds=time), "seconds must be a number above 0")
            for time in (0, -1.0, float("inf"), float("nan"), "1")
        ),
        *(
            (partial(decompress_records, [], None, steps_done=done), "steps_done must be")
            for done in (-1, 1.5, "1")
        ),
    ],
)
def test_invalid_arguments_get_a_sentence(call: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert len(str(caught.value)) < 5300 and "\n" not in str(caught.value)


def test_numbers_and_bytes_of_other_types_are_taken(model: Model) -> None:
    file = italic.compress(GREY, model, np.int64(2))
    for data in (bytearray(file), memoryview(file)):
        assert np.array_equal(italic.decompress(data, model, np.uint32(100)), GREY)


@pytest.mark.usefixtures("no_classical_codecs")
def test_a_time_budget_gives_a_number_of_steps(model: Model) -> None:
    assert steps_within(1e-9, 16, 16, model) == 1
    assert steps_within(1e9, 16, 16, model) == 256
    (record,) = compress_pictures([from_array(smooth(1, 16, 16)[0])], model, seconds=1e-9)
    assert record.steps == 1


def test_a_time_budget_is_filled_by_a_trial_on_a_part_of_the_image(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def seconds(_: Model, height: int, width: int, steps: int) -> float:
        tried.append((height, width, steps))
        return 1.0 + steps / 2

    monkeypatch.setattr(time_budget, "_seconds", seconds)
    assert steps_within(9.0, 16, 16, model) == 16
    assert steps_within(1e308, 384, 384, model) == 256
    assert steps_within(4.0 * 9.0, 384, 384, model) == 16  # four times the size of the trial image
    assert {size[:2] for size in tried} == {(16, 16), (192, 192)}


@pytest.mark.usefixtures("no_classical_codecs")
def test_a_model_that_is_given_need_not_be_installed(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = smooth(1, 16, 16)[0]
    file = italic.compress(array, model)
    other = tmp_path / "other.safetensors"
    save_model(other, model.network, replace(model.recipe, steps=2))
    with pytest.raises(ModelError, match=rf"'other' .*, but with 'tiny' \({model.hash.hex()}\)"):
        italic.decompress(file, other)
    monkeypatch.delenv(SEARCH_PATH)
    path = tmp_path / "tiny.safetensors"
    for given in (path, str(path), model):
        assert np.array_equal(italic.decompress(file, given), array)
    with pytest.raises(ModelError, match=f"with {model.hash.hex()}, which is not installed"):
        italic.decompress(file, other)
    with pytest.raises(ModelError, match=r"not installed: name its .* with --model"):
        italic.decompress(file)
    with pytest.raises(FileFormatError, match="limit of 255"):
        from_file(file, model, max_pixels=255)


def test_a_picture_that_needs_no_model_takes_any(model: Model) -> None:
    flat = np.zeros((32, 32, 3), np.uint8)
    assert np.array_equal(italic.decompress(italic.compress(flat, model), model), flat)


@pytest.mark.usefixtures("no_classical_codecs")
def test_a_wrong_picture_is_never_given_out(model: Model) -> None:
    file = bytearray(italic.compress(smooth(1, 16, 16)[0], model))
    with pytest.raises(FileFormatError):
        italic.decompress(bytes(file[:-1]))
    file[40] ^= 1
    with pytest.raises(FileFormatError):
        italic.decompress(bytes(file))


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


@pytest.mark.usefixtures("no_classical_codecs")
def test_several_pictures_give_the_files_of_each(model: Model) -> None:
    arrays = [*smooth(3, 16, 16), smooth(1, 8, 20)[0], smooth(1, 9, 9)[0, ..., 0]]
    files = italic.compress_many(arrays, model, 3)
    assert files == [italic.compress(array, model, 3) for array in arrays]
    assert files[:3] == italic.compress_many(smooth(3, 16, 16), model, 3)
    for back, array in zip(italic.decompress_many(iter(files)), arrays, strict=True):
        assert np.array_equal(back, array)
    assert italic.compress_many([]) == italic.decompress_many([]) == []
    with pytest.raises(ValueError, match="limit of 100"):
        italic.decompress_many(files, max_pixels=100)


@pytest.mark.usefixtures("no_classical_codecs")
def test_bits_without_coding(model: Model) -> None:
    images = smooth(2, 16, 16)
    totals = italic.bits(images, model, 3)
    assert isinstance(totals, np.ndarray) and totals.shape == (2,)
    for image, total in zip(images, totals, strict=True):
        assert italic.bits(image, "tiny", 3) == total
        pixels = italic.bits(image, model, 3, per_pixel=True)
        assert isinstance(pixels, np.ndarray) and pixels.shape == (16, 16)
        assert pixels.sum() == pytest.approx(total)
        _, record = unpack(italic.compress(image, model, 3))
        assert abs(8 * len(record.stream) - total) < 8.1
    assert italic.bits(images[0, :2, :2], model, 10**6) > 0
    for wrong in (images[..., 0], images.astype(float), images[:0], "a.png"):
        with pytest.raises(ValueError, match="expected "):
            italic.bits(wrong, model)
    with pytest.raises(ValueError, match="steps must be"):
        italic.bits(images, model, 0)


def test_a_model_codes_images_and_takes_a_device(model: Model) -> None:
    images = smooth(2, 16, 16)
    for steps in (None, 3):
        coded = model.encode(images, steps)
        assert np.array_equal(model.decode(coded, 16, 16, steps), images)
    assert italic.load_model("tiny", device="cpu") is italic.load_model("tiny")
    assert italic.load_model(model, device=torch.device("cpu")) is model
    for device in ("nothing", "cuda:99", "meta", 1.5):
        with pytest.raises(ModelError, match=r"there is no device .*: expected a device"):
            italic.load_model("tiny", device=device)  # type: ignore[arg-type]
    for steps in (0, "2", 2.0, 257):
        with pytest.raises(ValueError, match="steps must be"):
            model.encode(images, steps)
        with pytest.raises(ValueError, match="steps must be"):
            model.decode(coded, 16, 16, steps)
    for wrong in (None, images[0], images[:0]):
        with pytest.raises(ValueError, match="expected uint8"):
            model.encode(wrong)
    for wrong in (None, [], [b"abc"]):
        with pytest.raises(ValueError, match="expected results of encode"):
            model.decode(wrong, 16, 16)
    for height in (0, -1, 16.0):
        with pytest.raises(ValueError, match="height must be"):
            model.decode(coded, height, 16)


def test_functions_take_a_device_and_refuse_others_before_any_work(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = smooth(2, 16, 16)
    file = italic.compress(images[0], "tiny", device="cpu")
    assert file == italic.compress(images[0], "tiny")
    assert italic.compress_many(images, "tiny", device="cpu")[0] == file
    assert np.array_equal(italic.decompress(file, "tiny", device="cpu"), images[0])
    assert np.array_equal(italic.decompress_many([file], device="cpu")[0], images[0])
    assert italic.bits(images[0], model, device="cpu") == italic.bits(images[0], model)
    monkeypatch.setattr(compression, "Rival", None)
    monkeypatch.setattr(loading, "_load", None)
    for function, arguments in (
        (italic.compress, (images[0], "tiny")),
        (italic.compress_many, (images, "tiny")),
        (italic.decompress, (file, "tiny")),
        (italic.decompress_many, ([file], "tiny")),
        (italic.bits, (images, "tiny")),
        (italic.enhance, (FLAT_BPG, "tiny")),
    ):
        with pytest.raises(ModelError, match="there is no device 'meta': expected a device"):
            function(*arguments, device="meta")


def test_models_are_loaded_onto_the_device_of_the_context(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device "meta" stands for a GPU."""
    monkeypatch.setattr(loading, "_checked", torch.device)
    with loading.on_device("meta"):
        for found in (load_model("tiny"), load_model(model), loading.model_of(model.hash)):
            assert found.device.type == "meta" and found.hash == model.hash
        assert load_model("tiny") is load_model("tiny")
        assert load_model("tiny", "cpu").device.type == "cpu"
        assert load_model("tiny").device.type == "meta"
    assert load_model("tiny").device.type == load_model(model).device.type == "cpu"

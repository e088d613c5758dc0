"""Pictures in parts, their regions, and files that were cut short."""

import hashlib
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import imagecodecs
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import italic
from italic.coding.base_codes.base import NoBase
from italic.coding.exact import make_exact
from italic.coding.files.container import (
    Colour,
    FileFormatError,
    Grid,
    Method,
    PartCodes,
    Record,
    pack,
    unpack,
)
from italic.coding.files.pictures import Picture, from_array
from italic.coding.model_files.installed import SEARCH_PATH
from italic.coding.model_files.loading import load_model
from italic.coding.model_files.model import Model, save_model
from italic.coding.model_files.recipe import Recipe
from italic.coding.streams.codec import Codec
from italic.coding.streams.entropy import StreamError
from italic.compressor import compression, parts, rivals, work_limit
from italic.compressor.decompression import decompress_records
from italic.compressor.rivals import Rival, checksum
from italic.models.lattice import LatticeNetwork
from tests.coding.exact.grid_networks import OPTIONS, trained
from tests.coding.exact.grid_networks import pictures as gradients
from tests.compressor.files import compress_pictures

NETWORK = {"kind": "lattice", "features": 8, "blocks": 1, "components": 2, "window": 3}
NETWORK |= {"context_features": 8, "context_blocks": 1}
GOLDEN = "9a04825e6022792861e8a097eb42eed6714f4dd00232678aded7e35735cc9c0f"
HEIGHT, WIDTH, SIDE = 21, 30, 8  # 3 × 4 parts of 7 × 7 and 7 × 8 pixels


def noisy(height: int = HEIGHT, width: int = WIDTH, channels: int = 3) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    waves = 120 + 60 * np.sin(x / 5 + y / 7)
    noise = np.random.default_rng(0).normal(0, 3, (height, width, channels))
    return (waves[..., None] + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    recipe = Recipe(NETWORK, None, 4, "nested", "power", 1.0)
    settings = {name: value for name, value in NETWORK.items() if name != "kind"}

    def calibrate(untouched: nn.Module) -> None:
        Codec(untouched, NoBase(), recipe.schedule, 2).encode(noisy(16, 16)[None])

    save_model(path, make_exact(LatticeNetwork(**settings).eval(), calibrate), recipe)
    return load_model(path)


@pytest.fixture(autouse=True)
def in_parts(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every picture is coded by the estimator, in small parts."""
    save_model(tmp_path / "tiny.safetensors", model.network, model.recipe)
    monkeypatch.setenv(SEARCH_PATH, str(tmp_path))
    monkeypatch.setattr(parts, "WHOLE_PIXELS", 100)
    monkeypatch.setattr(parts, "SIDE", SIDE)
    monkeypatch.setattr(rivals, "FAST", {})
    monkeypatch.setattr(rivals, "GRAPHICS_EQUAL", 1)
    monkeypatch.setattr(compression, "size", lambda _: 10**6)  # the untrained estimator may be long
    monkeypatch.setattr(Rival, "finish", lambda rival, estimated: estimated or rival.record)


@pytest.fixture
def threads() -> Callable[[int], None]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_golden_parts(model: Model) -> None:
    """The bytes of a network whose outputs are the same on every machine."""
    network = trained(OPTIONS["small"])
    fixed = replace(model, network=network, recipe=replace(model.recipe, exponent=1.5))
    main = gradients(1, HEIGHT, WIDTH)[0]
    block = parts.encode(main, fixed, 3, SIDE, 10**6, lambda _: None)
    assert block is not None and hashlib.sha256(block).hexdigest() == GOLDEN
    size = (HEIGHT, WIDTH, checksum(main), Colour.RGB)
    record = Record(Method.ESTIMATOR_PARTS, *size, steps=3, stream=block, part=SIDE)
    (picture,) = decompress_records([record], fixed)
    assert np.array_equal(picture.samples, main)


@pytest.mark.parametrize("steps", [1, 5, 50])
def test_the_bytes_do_not_depend_on_the_number_of_threads(
    model: Model, threads: Callable[[int], None], steps: int
) -> None:
    files = []
    for count in (1, 3):
        threads(count)
        files.append(italic.compress(noisy(), model, steps))
        assert torch.get_num_threads() == count
        assert np.array_equal(italic.decompress(files[-1]), noisy())
    assert files[0] == files[1]
    _, record = unpack(files[0])
    assert (record.method, record.part, record.steps) == (7, SIDE, steps)
    bits = italic.bits(noisy(), model, steps)
    codes = PartCodes.from_bytes(record.stream, Grid(HEIGHT, WIDTH, SIDE), steps)
    assert abs(8 * len(codes.data) - bits) < 12 * 8.1
    for done in (1, steps // 2):
        (early,) = decompress_records([record], model, steps_done=done)
        # The parts are coded as pictures: nothing of a part depends on another one.
        part = noisy()[:7, :7]
        codec = model.codec(min(steps, 49))
        (coded,) = codec.encode(part[None])
        assert coded.stream == codes.stream(0, steps)
        (alone,) = codec.decode([coded], 7, 7, steps_done=done)
        assert np.array_equal(early.samples[:7, :7], alone)


def test_each_part_has_a_base_code(model: Model, threads: Callable[[int], None]) -> None:
    based = replace(model, recipe=replace(model.recipe, base={"qp": 40, "chroma": "420"}))
    records = []
    for count in (1, 3):
        threads(count)
        records += compress_pictures([from_array(noisy())], based, 3)
    assert records[0] == records[1]
    codes = PartCodes.from_bytes(records[0].stream, Grid(HEIGHT, WIDTH, SIDE), 3)
    assert all(codes.bases) and not records[0].base
    for count in (1, 3):
        threads(count)
        (picture,) = decompress_records(records[:1], based)
        assert np.array_equal(picture.samples, noisy())


def test_base_codes_are_shown_if_the_first_step_is_not_whole(model: Model) -> None:
    based = replace(model, recipe=replace(model.recipe, base={"qp": 40, "chroma": "420"}))
    (record,) = compress_pictures([from_array(noisy())], based, 3)
    (expected,) = decompress_records([record], based, steps_done=0)
    codes = PartCodes.from_bytes(record.stream, Grid(HEIGHT, WIDTH, SIDE), 3)
    file = pack(based.hash, record)[: -4 - len(codes.data) + 5]
    found = italic.decompress(file, based, partial=True)
    assert np.array_equal(found, expected.samples)


def test_errors_end_the_other_threads(model: Model, threads: Callable[[int], None]) -> None:
    threads(3)
    (record,) = compress_pictures([from_array(noisy())], model, 3)
    damaged = replace(record, stream=record.stream[:48] + bytes(len(record.stream) - 48))
    with pytest.raises(ValueError, match=r"damaged"):
        decompress_records([damaged], model)
    assert torch.get_num_threads() == 3


def test_few_parts_are_submitted_at_a_time(model: Model, threads: Callable[[int], None]) -> None:
    """A small file may have millions of parts."""
    threads(3)
    submitted: list[int] = []
    all_threads = Barrier(3)

    def code(item: int) -> int:
        submitted.append(item)
        if item < 3:
            all_threads.wait()
        assert torch.get_num_threads() == 1
        return item + 1

    results = parts._Workers(model).map(code, range(1000))
    assert [next(results) for _ in range(5)] == [1, 2, 3, 4, 5] and len(submitted) < 20
    with ThreadPoolExecutor(1) as other:  # a thread of the host program that starts now
        assert other.submit(torch.get_num_threads).result() == 3
    results.close()
    assert torch.get_num_threads() == 3
    assert [*parts._Workers(model).map(code, range(9))] == [*range(1, 10)]


def test_several_threads_code_at_once(model: Model, threads: Callable[[int], None]) -> None:
    threads(3)
    expected = italic.compress(noisy(), model, 3)

    def code(_: int) -> bool:
        file = italic.compress(noisy(), model, 3)
        return file == expected and np.array_equal(italic.decompress(file), noisy())

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(code, range(2)))
    assert torch.get_num_threads() == 3


def test_the_estimator_stops_when_it_cannot_win(
    model: Model, threads: Callable[[int], None]
) -> None:
    for count in (1, 4):
        threads(count)
        for limit in (10, 400, 900):
            done: list[int] = []
            assert parts.encode(noisy(), model, 4, SIDE, limit, done.append) is None
            assert sum(done) <= 0.8 * HEIGHT * WIDTH
    assert parts.encode(noisy(), model, 4, SIDE, 10**5, done.append) is not None


def test_a_few_bytes_claim_no_size_and_no_work(model: Model) -> None:
    tiny = Record(Method.ESTIMATOR_PARTS, 2**16, 2**12, 0, Colour.RGB, (), 1, part=1)
    for part in (1, 2**30):
        for stream in (bytes(20), b"\0\0", b"", b"\0\x0c" + bytes(12)):
            with pytest.raises((FileFormatError, StreamError), match="bytes"):
                record = replace(tiny, part=part, stream=stream)
                decompress_records([record], model, max_work=1e12)
    with pytest.raises(ValueError, match="raise max_work"):
        decompress_records([tiny], model)


def test_nothing_is_written_that_would_be_refused_for_its_work(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_limit, "WORK", 0)
    # Work for 630 pixels, and 256 more for each step of each of the 12 parts.
    monkeypatch.setattr(work_limit, "WORK_PER_BYTE", 10)
    for steps, fewer in ((3, 3), (16, 4)):
        (record,) = compress_pictures([from_array(noisy())], model, steps)
        assert (record.method, record.steps) == (Method.ESTIMATOR_PARTS, fewer)
        decompress_records([record], model)
    monkeypatch.setattr(work_limit, "WORK_PER_BYTE", 1)
    (record,) = compress_pictures([from_array(noisy())], model, 3)
    assert record.method == Method.RAW


def test_damaged_tables_are_refused(model: Model) -> None:
    (record,) = compress_pictures([from_array(noisy())], model, 2)
    good, least = record.stream, 12 * 3
    for stream in (
        good[: least - 1],
        good[:-1],
        good + b"\0",
        b"\5" + good,
        good[:12] + b"\0" + good[13:],
        good[:12] + b"\x80\0" + good[13:],
        good[:12] + b"\xff\xff\xff\xff\x0f" + good[13:],
    ):
        with pytest.raises(FileFormatError, match=r"parts|record") as caught:
            decompress_records([replace(record, stream=stream)], model)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def kinds() -> list[Picture]:
    wide = noisy().astype(np.uint16) * 257 - np.arange(WIDTH, dtype=np.uint16)[:, None]
    return [
        from_array(noisy()),
        from_array(noisy()[..., 0]),
        from_array(noisy(channels=4)),
        from_array(wide),
        from_array(np.dstack([wide, wide[..., :1]])),
        from_array(wide[..., :2]),
        Picture(noisy()[..., 0] % 20, palette=bytes(range(30)) * 2, icc=b"profile"),
        Picture((noisy()[..., 0] > 120).astype(np.uint8) * np.uint8(255), bilevel=True),
    ]


@pytest.mark.parametrize("picture", kinds(), ids=lambda picture: picture.colour.name)
def test_regions(model: Model, picture: Picture, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, width, height = region = 5, 9, 12, 6
    expected = picture.samples[y : y + height, x : x + width]
    decoded = []
    read = Codec.decode
    monkeypatch.setattr(Codec, "decode", lambda *args: decoded.append(args) or read(*args))
    for pixels, count in ((100, 2 * 3), (10**6, 1)):
        monkeypatch.setattr(parts, "WHOLE_PIXELS", pixels)
        (record,) = compress_pictures([picture], model, 3)
        assert record.estimated
        decoded.clear()
        (found,) = decompress_records([record], model, region=region)
        assert np.array_equal(found.samples, expected) and len(decoded) == count
        assert found.samples.dtype == expected.dtype
        assert replace(found, samples=picture.samples).colour == picture.colour
        assert (found.palette, found.icc) == (picture.palette, picture.icc)
        (early,) = decompress_records([record], model, steps_done=1, region=region)
        (whole,) = decompress_records([record], model, steps_done=1)
        assert np.array_equal(early.samples, whole.samples[y : y + height, x : x + width])
        (all_of_it,) = decompress_records([record], model, region=(0, 0, WIDTH, HEIGHT))
        assert np.array_equal(all_of_it.samples, picture.samples)
        with pytest.raises(FileFormatError, match="not the one that was coded"):
            damaged = replace(record, checksum=record.checksum ^ 1)
            decompress_records([damaged], model, region=(0, 0, WIDTH, HEIGHT))


def test_regions_of_classical_codecs_and_jpeg_files(model: Model) -> None:
    grey = noisy()[..., 0]
    raw = Record(Method.RAW, HEIGHT, WIDTH, checksum(grey), Colour.GREY, stream=grey.tobytes())
    file = pack(bytes(8), raw)
    assert np.array_equal(italic.decompress(file, region=(29, 20, 1, 1)), grey[20:, 29:])
    file = italic.compress_jpeg(bytes(imagecodecs.jpeg8_encode(noisy())))
    whole = italic.decompress(file)
    assert np.array_equal(italic.decompress(file, region=(3, 4, 5, 6)), whole[4:10, 3:8])


def test_regions_of_jpeg_files_whose_metadata_is_unusual() -> None:
    """A file of several pictures, as phones write them, and one with half a colour profile."""
    first, several = Image.fromarray(noisy()), io.BytesIO()
    first.save(several, "MPO", save_all=True, append_images=[first])
    plain = bytes(imagecodecs.jpeg8_encode(noisy()))
    body = b"ICC_PROFILE\0\1\2abc"
    segment = b"\xff\xe2" + (len(body) + 2).to_bytes(2) + body
    for data in (several.getvalue(), plain[:2] + segment + plain[2:]):
        file = italic.compress_jpeg(data)
        whole = italic.decompress(file)
        assert np.array_equal(italic.decompress(file, region=(3, 4, 5, 6)), whole[4:10, 3:8])


@pytest.mark.parametrize(
    ("region", "sentence"),
    [
        *(
            (region, "not within the picture of 30 × 21")
            for region in ((0, 0, 31, 1), (0, 20, 1, 2))
        ),
        *(
            (region, "region must be")
            for region in ((0, 0, 0, 1), (-1, 0, 1, 1), (0, 0, 1), "1,2", 5, (0.0, 0, 1, 1))
        ),
    ],
)
def test_invalid_regions_are_refused(model: Model, region: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        italic.decompress(italic.compress(noisy(), model), region=region)


@pytest.mark.parametrize("pixels", [100, 10**6])
def test_a_file_that_ends_early(model: Model, monkeypatch: pytest.MonkeyPatch, pixels: int) -> None:
    """The result is the picture after the last whole step, with any bytes after the cut."""
    monkeypatch.setattr(parts, "WHOLE_PIXELS", pixels)
    steps = 5
    file = italic.compress(noisy(), model, steps)
    _, record = unpack(file)
    previews = [
        decompress_records([record], model, steps_done=done)[0].samples for done in range(steps + 1)
    ]
    held = []
    for lacking in [*range(len(record.stream), 12, -90), 12, 9, 8, 5, 4, 1]:
        cut = file[:-lacking]
        with pytest.raises(FileFormatError, match=r"truncated, it lacks .* --partial \(in Python"):
            italic.decompress(cut)
        try:
            found = italic.decompress(cut, partial=True)
        except FileFormatError as error:
            assert not held and ("truncated" in str(error) or "ends early" in str(error))
            continue
        done = next(i for i, early in enumerate(previews) if np.array_equal(early, found))
        held.append(done)
    assert held == sorted(held) and set(held) == {1, 2, 3, 4, 5}
    assert np.array_equal(italic.decompress(file, partial=True), noisy())
    region = italic.decompress(file[:-60], partial=True, region=(2, 3, 9, 8))
    assert np.array_equal(region, italic.decompress(file[:-60], partial=True)[3:11, 2:11])
    with pytest.raises(FileFormatError, match="limit of 629"):
        italic.decompress(file[:-60], partial=True, max_pixels=629)
    damaged = bytearray(file)
    damaged[-30] ^= 1
    with pytest.raises(FileFormatError, match="CRC-32"):
        italic.decompress(bytes(damaged), partial=True)


def test_a_classical_file_that_ends_early_is_refused() -> None:
    grey = noisy()[..., 0]
    raw = Record(Method.RAW, HEIGHT, WIDTH, checksum(grey), Colour.GREY, stream=grey.tobytes())
    for partial in (False, True):
        with pytest.raises(FileFormatError, match="coded as RAW can't be decoded in part"):
            italic.decompress(pack(bytes(8), raw)[:-99], partial=partial)

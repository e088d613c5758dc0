"""Damaged and malicious files are refused or harmless; `benchmarks/fuzz.py` has more cases."""

import math
import mmap
import os
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from italic.coding.files import container
from italic.coding.files.container import Chunk, Colour, Method, Record
from italic.coding.model_files.installed import SEARCH_PATH
from italic.coding.streams import range_coder
from italic.coding.streams.codec import SYMBOLS_PER_BYTE
from italic.coding.streams.entropy import StreamError
from italic.compressor.decompression import from_file
from tests.fuzzing import limits, workers
from tests.fuzzing.corpus import LAYERS, Layer, corpus
from tests.fuzzing.damage import DAMAGES, SYSTEMATIC, Case, cases, changed
from tests.fuzzing.opening import OPENERS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Layer]]:
    before, threads = os.environ.get(SEARCH_PATH), torch.get_num_threads()
    torch.set_num_threads(1)  # its threads do not survive a fork
    yield corpus(tmp_path_factory.mktemp("models"))
    torch.set_num_threads(threads)
    os.environ.pop(SEARCH_PATH)
    if before is not None:
        os.environ[SEARCH_PATH] = before


def file_of(layers: list[Layer], colour: Colour, method: Method, based: bool = False) -> bytes:
    """A file of the corpus."""
    for layer in layers:
        record = layer.record
        if layer.kind == "picture" and record is not None:
            found = record.method, record.colour, bool(record.base)
            if found == (method, colour, based):
                return layer.wrap(layer.data)
    raise AssertionError("the corpus has no such file")


def test_damage_of_every_kind_is_refused_or_harmless(layers: list[Layer]) -> None:
    results = workers.run(layers, cases(layers, 800, seed=1))
    assert [line for result in results.values() for line, _ in result.failures] == []
    assert {layer for layer, _ in results} == set(LAYERS)
    damages = {*SYSTEMATIC, *DAMAGES, "claim", "structure"}
    assert {damage for _, damage in results} == damages
    for (layer, _), result in results.items():
        assert layer != "file" or not result.outcomes["other"]
    assert sum(result.outcomes.total() for result in results.values()) == 800


def test_changes_of_structure_get_past_checksums_and_through(layers: list) -> None:
    """For each part with a changed structure, some cases give a picture."""
    random = np.random.default_rng(0)
    for name in ("record", "jpeg_xl", "index"):
        these = [layer for layer in layers if layer.name == name]
        for number in range(100):
            layer = these[number % len(these)]
            assert layer.structure is not None
            try:
                OPENERS[layer.kind](layer.structure(random))
            except ValueError as error:
                assert "CRC-32" not in str(error)
            else:
                break
        else:
            raise AssertionError(f"none of {name}")


@pytest.mark.parametrize(
    ("method", "based"),
    [(Method.ESTIMATOR, False), (Method.ESTIMATOR, True), (Method.ESTIMATOR_PARTS, False)],
)
def test_every_byte_and_every_length_of_a_file_count(
    layers: list[Layer], method: Method, based: bool
) -> None:
    file = file_of(layers, Colour.RGB, method, based)
    for position in range(len(file)):
        for difference in (1, 128, 255):
            with pytest.raises(ValueError):
                from_file(changed(file, position, difference))
        with pytest.raises(ValueError):
            from_file(file[:position])
    for extra in (b"\0", file):
        with pytest.raises(ValueError):
            from_file(file + extra)


@pytest.mark.parametrize("steps", [1, container.MAX_STEPS])
def test_a_few_bytes_do_not_stand_for_a_huge_picture(layers: list[Layer], steps: int) -> None:
    for based in (False, True):
        good = file_of(layers, Colour.RGB, Method.ESTIMATOR, based)
        _, record = container.unpack(good)
        huge = replace(record, height=2**14, width=2**14, steps=steps, chunks=())
        file = container.pack(good[6:14], replace(huge, stream=b"\1" * 4, colour=Colour.RGB))
        tracemalloc.start()
        start = time.process_time()
        with pytest.raises(StreamError, match="4 bytes are too few for 16384 × 16384 pixels"):
            from_file(file, max_work=math.inf)
        with pytest.raises(ValueError, match=r"16384 × 16384 in .* raise max_work"):
            from_file(file)
        assert time.process_time() - start < 5 and tracemalloc.get_traced_memory()[1] < 2**20
        tracemalloc.stop()


@pytest.mark.parametrize("start", [0, 255])
@pytest.mark.parametrize("count", [1, 1000, 300_000, 3_000_000])
def test_no_stream_is_shorter_than_its_symbols_allow(start: int, count: int) -> None:
    # The most probable symbol, repeated: each of the 255 other values has frequency 1.
    starts = np.full(count, start, np.uint32)
    frequencies = np.full(count, range_coder.TOTAL - 255, np.uint32)
    words = np.empty(count, np.uint32)
    first = np.uint64(range_coder.FIRST_WIDTH)
    used, _, _ = range_coder.encode(starts, frequencies, words, 0, np.uint64(0), first)
    assert count <= 0.75 * SYMBOLS_PER_BYTE * (4 * used + 4)


@pytest.mark.parametrize("method", [Method.PNG, Method.WEBP, Method.JPEG_XL, Method.RAW])
def test_pictures_of_other_sizes_than_the_record_are_refused(
    layers: list[Layer], method: Method
) -> None:
    for colour in Colour:
        try:
            good = file_of(layers, colour, method)
        except AssertionError:
            continue
        _, record = container.unpack(good)
        for height, width in ((record.height + 1, record.width), (2**14, 2**14), (1, 2)):
            with pytest.raises(ValueError, match=f"the {method.name} picture in it is damaged"):
                from_file(container.pack(bytes(8), replace(record, height=height, width=width)))


def test_a_base_code_of_another_model_is_refused(layers: list[Layer]) -> None:
    plain = file_of(layers, Colour.RGB, Method.ESTIMATOR)
    based = file_of(layers, Colour.RGB, Method.ESTIMATOR, based=True)
    for file, header in ((based, plain), (plain, based)):
        _, record = container.unpack(file)
        with pytest.raises(ValueError):
            from_file(container.pack(header[6:14], record))


def dies(_: bytes) -> object:
    os._exit(3)


def hangs(_: bytes) -> object:
    time.sleep(1000)
    return None


def raises(_: bytes) -> object:
    raise KeyError("a bug")


def lies(_: bytes) -> object:
    return "another picture"


def devours(_: bytes) -> object:
    with mmap.mmap(-1, 2**27) as pages:  # new pages; those of an array may be reused
        pages.write(bytes(2**20) * 2**7)
    raise ValueError


@pytest.mark.parametrize(
    ("opener", "reason"),
    [
        (dies, "the process died with status 3"),
        (hangs, "hung"),
        (raises, "KeyError"),
        (lies, "a wrong picture"),
        (devours, "bytes of memory"),
    ],
)
def test_the_harness_sees_every_kind_of_failure(
    layers: list[Layer], monkeypatch: pytest.MonkeyPatch, opener: object, reason: str
) -> None:
    monkeypatch.setattr(workers, "OPENERS", {"picture": opener})
    # A short limit only for the opener that never returns: a busy machine slows down the others.
    monkeypatch.setattr(limits, "SECONDS", 0.5 if opener is hangs else 60)
    monkeypatch.setattr(limits, "MEMORY", 2**25)
    monkeypatch.setattr(limits, "SECONDS_PER_PIXEL", 0)
    monkeypatch.setattr(limits, "MEMORY_PER_PIXEL", 0)
    file = next(layer for layer in layers if layer.name == "file")
    todo = [Case((0, number), 0, "cut", 5) for number in range(2)]
    results = workers.run([file], todo)
    failures = results["file", "cut"].failures
    assert len(failures) == 2 and all(reason in line for line, _ in failures)
    assert failures[0][1] == file.data[:5]


def test_every_method_colour_and_chunk_is_in_the_corpus(layers: list[Layer]) -> None:
    records = [layer.record for layer in layers if isinstance(layer.record, Record)]
    assert {record.method for record in records} == set(Method)
    assert {record.colour for record in records} == set(Colour)
    assert {kind for record in records for kind, _ in record.chunks} == set(Chunk)

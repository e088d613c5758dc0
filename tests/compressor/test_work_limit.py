"""The limit of the work of decoding."""

import time
from dataclasses import replace

import numpy as np
import pytest

import italic
from italic.coding.files.container import Colour, Method, Record, unpack
from italic.coding.files.pictures import from_array
from italic.coding.model_files.model import Model
from italic.coding.streams.entropy import StreamError
from italic.compressor import work_limit
from italic.compressor.decompression import decompress_records
from tests.compressor.examples import smooth
from tests.compressor.files import compress_pictures, to_file

pytestmark = pytest.mark.usefixtures("installed")


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

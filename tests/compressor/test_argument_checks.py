"""Arguments of the Python functions."""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import italic
from italic.coding.model_files import loading
from italic.coding.model_files.model import Model, ModelError
from italic.compressor import compression
from italic.compressor.decompression import decompress_records
from italic.compressor.enhancement import enhance
from tests.compressor.examples import FLAT_BPG, GREY, smooth
from tests.compressor.files import compress_pictures

pytestmark = pytest.mark.usefixtures("installed")


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

"""Records and files are decompressed by the model that they need, or refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import italic
from italic.coding.files.container import FileFormatError, Method
from italic.coding.files.pictures import from_array
from italic.coding.model_files.installed import SEARCH_PATH
from italic.coding.model_files.model import Model, ModelError, save_model
from italic.compressor.decompression import decompress_records, from_file
from tests.compressor.examples import smooth
from tests.compressor.files import compress_pictures

pytestmark = pytest.mark.usefixtures("installed")


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

"""Pictures given as arrays: the functions of `italic`."""

import numpy as np
import pytest
import torch

import italic
from italic.coding.files.container import unpack
from italic.coding.model_files.model import Model
from tests.compressor.examples import smooth

pytestmark = pytest.mark.usefixtures("installed")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(1, 1, 3), (16, 16, 3), (9, 5), (7, 8, 2), (6, 11, 4)])
def test_arrays_come_back(shape: tuple[int, ...], dtype: type) -> None:
    array = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, True)
    decoded = italic.decompress(italic.compress(array, "tiny", 3))
    assert decoded.dtype == dtype and np.array_equal(decoded, array)


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

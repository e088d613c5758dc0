import numpy as np
import pytest

from italic.coding.files.pictures import (
    METADATA_LIMIT,
    Picture,
    PictureError,
    from_array,
)
from tests.coding.files.pictures.samples import RNG, noise, round_trip


def test_arrays() -> None:
    for shape in ((4, 5), (4, 5, 2), (4, 5, 3), (4, 5, 4)):
        for kind in (np.uint8, np.uint16, ">u2"):
            array = RNG.integers(0, 256, shape).astype(kind)
            picture = from_array(array)
            np.testing.assert_array_equal(picture.samples, array)
            round_trip(picture)
    assert from_array(np.zeros((4, 5, 1), np.uint8)).samples.shape == (4, 5)
    for bad in (
        np.zeros((4, 5)),
        np.zeros((4, 5), np.uint32),
        np.zeros((4, 5), bool),
        np.zeros((4, 5, 5), np.uint8),
        np.zeros((4, 5, 0), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((5,), np.uint8),
        [[1]],
    ):
        with pytest.raises(PictureError, match="expected uint8 or uint16"):
            from_array(bad)  # type: ignore[arg-type]


def test_masked_arrays() -> None:
    array = np.ma.masked_equal(np.arange(6, dtype=np.uint8).reshape(2, 3), 4)
    with pytest.raises(PictureError, match="masked samples"):
        from_array(array)
    assert from_array(array.filled(0)).samples[1, 1] == 0


def test_pictures_check_themselves() -> None:
    gray = noise()
    for bad in (
        {"palette": b""},
        {"palette": bytes(4)},
        {"palette": bytes(771)},
        {"transparency": b"\0"},
        {"bilevel": True},
        {"icc": bytes(METADATA_LIMIT + 1)},
        {"chunks": ((b"prVt", b""),)},
        {"chunks": ((b"pHYs", b""),) * 2},
    ):
        with pytest.raises(PictureError):
            Picture(gray, **bad)  # type: ignore[arg-type]

import numpy as np
import pytest

from italic.coding.files.pictures import (
    PictureError,
    read,
)
from tests.coding.files.pictures.samples import noise, round_trip


def test_pnm_of_16_bits() -> None:
    for head, channels in ((b"P5 21\n13\n65535\n", ()), (b"P6# x\n21 # y\n13 65535 ", (3,))):
        samples = noise(*channels, bits=16, dtype=np.uint16)
        picture = read(head + samples.astype(">u2").tobytes())
        np.testing.assert_array_equal(picture.samples, samples)
        round_trip(picture)


def test_plain_pnm() -> None:
    assert read(b"P3 1 2 255 1 2 3\n4 5 255").samples.tolist() == [[[1, 2, 3]], [[4, 5, 255]]]
    assert read(b"P2 2 1 255\n7 # x\n\n008\n").samples.tolist() == [[7, 8]]
    deep = read(b"P2 1 1 65535 256 ").samples
    assert (deep.dtype, deep.tolist()) == (np.uint16, [[256]])
    picture = read(b"P1 #x\n3 2\n100 # 1\n0 1\n1")
    assert picture.samples.tolist() == [[0, 255, 255], [255, 0, 0]] and picture.bilevel


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"P6 1 1 100 abc", "samples of 0 to 100"),
        (b"P5 1 1 4095 ab", "samples of 0 to 4095"),
        (b"P6 1 1 255 abcabc", "several pictures"),
        (b"P6 99999 99999 65535 ab", "several pictures"),
        (b"P6 1 1 65535#comment\nabcdef", "begins with P"),
        (b"PyRGBA 1 1 255 abcd", "begins with P"),
        (b"Pf 1 1 -1.0\nabcd", "begins with P"),
        (b"P4 999999999 999999999 ", "several pictures"),
        (b"P4 0 0 ", "its header declares 0 × 0 pixels"),
        (b"P5", "begins with P"),
        (b"P5 0 1 255\n", "its header declares 0 × 1 pixels"),
        (b"P", "begins with P"),
        *((2 * data, "several pictures") for data in (b"P4 8 2 ab", b"P1 2 1 01\n")),
        *((2 * data, "not numbers") for data in (b"P2 1 1 255 7\n", b"P3 1 1 255 1 2 3\n")),
        (b"P1 2 1 0", "several pictures"),
        (b"P1 2 1 0 0 0", "several pictures"),
        (b"P2 1 1 255 7 7", "several pictures"),
        (b"P2 1 1 255  ", "several pictures"),
        (b"P4 9 1 a", "several pictures"),
        (b"P1 2 1 07", "outside 0 to 1"),
        (b"P1 2 1 0-", "outside 0 to 1"),
        (b"P2 1 1 255 256", "outside 0 to 255"),
        (b"P2 1 1 255 99999999999999999999999", "outside 0 to 255"),
        (b"P2 1 1 255 1_0", "not numbers"),
        (b"P2 1 1 255 -1", "not numbers"),
    ],
)
def test_pnm_files_that_are_refused(data: bytes, sentence: str) -> None:
    with pytest.raises(PictureError, match=sentence):
        read(data)

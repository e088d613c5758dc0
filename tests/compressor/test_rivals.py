from collections.abc import Callable
from dataclasses import replace

import imagecodecs
import numpy as np
import pytest

from italic.coding.files import classical
from italic.coding.files.container import Colour, Method, Record
from italic.coding.files.pictures import Picture, from_array, join
from italic.compressor import rivals
from italic.compressor.rivals import Rival, size


def smooth(height: int, width: int, channels: int = 3) -> np.ndarray:
    y, x = np.mgrid[:height, :width][..., None]
    noise = np.random.default_rng(0).normal(0, 2, (height, width, channels))
    waves = 120 + 60 * np.sin(x / 5 + y / (7 + np.arange(channels)))
    return (waves + noise).clip(0, 255).astype(np.uint8)


def icon() -> np.ndarray:
    y, x = np.mgrid[:24, :24]
    shape = np.hypot(y - 12, x - 12)[..., None]
    alpha = (255 * (11 - shape)).clip(0, 255)
    return np.concatenate([np.full((24, 24, 3), (220, 60, 40)), alpha], 2).astype(np.uint8)


def decoded(record: Record) -> Picture:
    height, width = record.height, record.width
    main = classical.decode(record.method, record.stream, height, width, record.colour)
    assert rivals.checksum(main) == record.checksum
    return join(record.colour, main, list(record.chunks))


PALETTE = bytes(range(48))
PICTURES: dict[Colour, Callable[[], Picture]] = {
    Colour.RGB: lambda: from_array(smooth(30, 20)),
    Colour.GREY: lambda: from_array(smooth(30, 20, 1)),
    Colour.PALETTE: lambda: Picture(smooth(30, 20, 1)[..., 0] // 16, PALETTE, bytes([0, 9])),
    Colour.GREY_ALPHA: lambda: from_array(smooth(30, 20, 2)),
    Colour.RGB_ALPHA: lambda: from_array(icon()),
    Colour.GREY16: lambda: from_array(smooth(30, 20, 1).astype(np.uint16) * 300),
    Colour.RGB16: lambda: from_array(smooth(30, 20).astype(np.uint16) * 300),
    Colour.RGB_ALPHA16: lambda: from_array(smooth(30, 20, 4).astype(np.uint16) * 300),
    Colour.GREY_ALPHA16: lambda: from_array(smooth(30, 20, 2).astype(np.uint16) * 300),
    Colour.BILEVEL: lambda: Picture(smooth(30, 20, 1)[..., 0] // 128 * np.uint8(255), bilevel=True),
}


@pytest.mark.parametrize("colour", PICTURES)
def test_pictures_of_every_kind_come_back(colour: Colour) -> None:
    picture = PICTURES[colour]()
    rival = Rival(picture)
    for record in (rival.record, rival.finish(None)):
        assert record.colour == colour and size(record) <= picture.samples.nbytes + 100
        back = decoded(record)
        assert np.array_equal(back.samples, picture.samples)
        assert (back.palette, back.transparency) == (picture.palette, picture.transparency)


def test_an_icon_is_coded_whole() -> None:
    rival = Rival(from_array(icon()))
    assert not rival.record.chunks
    record = rival.finish(None)
    separate = size(Rival(from_array(icon()[..., :3].copy())).finish(None))
    alpha = sum(len(content) for _, content in rival.chunks)
    assert size(record) < separate + alpha


def test_an_opaque_alpha_channel_costs_a_byte() -> None:
    opaque = np.dstack([smooth(30, 20), np.full((30, 20), 255, np.uint8)])
    rival = Rival(from_array(opaque))
    assert len(rival.chunks) == 1 and rival.record.chunks == tuple(rival.chunks)
    assert size(rival.record) <= size(Rival(from_array(smooth(30, 20))).record) + 1


@pytest.mark.parametrize(
    ("array", "promising"),
    [
        (smooth(64, 64), True),
        (np.where(np.arange(64)[:, None, None] < 48, 255, smooth(64, 64)).astype(np.uint8), True),
        (np.where(np.arange(64)[:, None, None] < 60, 255, smooth(64, 64)).astype(np.uint8), False),
        (np.full((64, 64, 3), 9, np.uint8), False),
        (icon(), False),
        (np.arange(64 * 64, dtype=np.uint8).reshape(64, 64), False),  # few bits, no equal pixels
        (np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), False),
        (np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8), True),
        (np.zeros((3, 1), np.uint8), True),
    ],
)
def test_graphics_and_noise_are_not_promising(array: np.ndarray, promising: bool) -> None:
    assert Rival(from_array(array)).promising is promising


def test_slow_settings_are_for_pictures_that_the_estimator_does_not_win(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = []

    def slow(samples: np.ndarray) -> bytes:
        tried.append(samples.shape)
        return b"1"

    monkeypatch.setattr(rivals, "SLOW", {Method.JPEG_XL: slow})
    rival = Rival(from_array(smooth(64, 64)))
    fast = rival.record
    best = replace(fast, method=Method.ESTIMATOR, steps=1, stream=bytes(len(fast.stream) // 2))
    assert rival.finish(best) is best and not tried
    close = replace(best, stream=bytes(len(fast.stream) - 1))
    assert rival.finish(close).stream == b"1" and tried == [(64, 64, 3)]
    with_alpha = np.dstack([smooth(64, 64), smooth(64, 64)[..., 0]])
    assert Rival(from_array(with_alpha)).finish(best).stream == b"1" and tried.pop() == (64, 64, 4)
    hurried = Rival(from_array(smooth(64, 64)), seconds=0.01)
    assert hurried.finish(None) == fast and len(tried) == 1
    monkeypatch.setattr(rivals, "SLOW_OTHER", (64, 0))
    rival = Rival(from_array(smooth(64, 64)))
    assert rival.finish(close) is close and rival.finish(None) == fast and len(tried) == 1
    monkeypatch.setattr(rivals, "SLOW_FLAT", (64, 0))
    assert Rival(from_array(np.zeros((64, 64, 3), np.uint8))).record.stream != b"1"


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_are_not_above_jpeg_xl(channels: int) -> None:
    """Of a picture in linear light, in which all 16 bits are used."""
    y, x = np.mgrid[:48, :48][..., None]
    light = 0.15 + 0.1 * np.sin(x / 25 + y / (25 + np.arange(channels)))
    noise = np.random.default_rng(0).normal(0, 0.0005, light.shape)
    samples = np.round(65535 * (light + noise).clip(0, 1) ** 2.4).astype(np.uint16)
    picture = from_array(samples)
    rival = Rival(picture)
    assert rival.promising  # though many high bytes are equal
    found = rival.finish(None)
    assert np.array_equal(decoded(found).samples, picture.samples)
    for effort in (7, 9):
        assert size(found) <= len(
            imagecodecs.jpegxl_encode(picture.samples, lossless=True, effort=effort)
        )

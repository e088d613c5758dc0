from __future__ import annotations

import numpy as np
import pytest

from italic.measuring import classical


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_every_codec_returns_every_image() -> None:
    rows = [codec.row for codec in classical.measure(noise(2, 24, 17, 3), progress=False)]
    assert [row.codec for row in rows] == list(classical.CODECS)
    for row in rows:
        assert row.lossless and row.images == 2
        assert row.bpsp > 8  # noise is incompressible, and every file has a header
        assert row.encode_ms > 0 and row.decode_ms > 0


def test_a_flat_image_takes_almost_nothing() -> None:
    for row, _ in classical.measure(np.full((1, 64, 64, 3), 90, np.uint8), progress=False):
        assert row.lossless and 0 < row.bpsp < 0.3


def test_any_layout_is_taken() -> None:
    images = noise(3, 16, 16, 2).transpose(3, 1, 2, 0)
    assert all(row.lossless for row, _ in classical.measure(images, progress=False))


def test_bits_are_those_of_whole_files(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = (lambda image: image.tobytes() + b"head", lambda data: np.frombuffer(data, np.uint8))
    monkeypatch.setattr(classical, "CODECS", {"stored": stored})
    ((row, bits),) = classical.measure(noise(5, 4, 4, 3), progress=False)
    assert row.bpsp == row.bpsp_low == row.bpsp_high == 8 * (48 + 4) / 48
    assert bits.tolist() == 5 * [8 * (48 + 4)]
    assert row.decode_ms_low <= row.decode_ms <= row.decode_ms_high
    assert not row.lossless  # the decoded shape differs


def test_one_changed_image_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    images = noise(3, 4, 4, 3)
    images[:, 0, 0, 0] = (7, 0, 9)
    monkeypatch.setattr(
        classical,
        "CODECS",
        {"lossy": (np.ndarray.tobytes, lambda data: np.maximum(_image(data), [1, 0, 0]))},
    )
    ((row, _),) = classical.measure(images, progress=False)
    assert not row.lossless


def _image(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8).reshape(4, 4, 3)


@pytest.mark.parametrize(
    "images",
    [np.zeros((2, 4, 4, 3)), noise(4, 4, 3), noise(2, 4, 4, 4), noise(0, 4, 4, 3)],
)
def test_other_arrays_are_refused(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"uint8 \(N, H, W, 3\)"):
        classical.measure(images, progress=False)

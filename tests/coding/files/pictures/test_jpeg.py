"""JPEG files that are kept whole."""

from functools import partial

import numpy as np
import pytest
from PIL import Image

from italic.coding.files.pictures import PictureError, jpeg, read
from italic.coding.files.pictures.jpeg import jpeg_shape, largest_jpeg
from tests.coding.files.pictures.samples import EXIF, ICC, SIZE, noise, saved

whole = partial(read, whole_jpeg=True)
METADATA = {"exif": EXIF, "icc_profile": ICC, "comment": b"secret"}


def shape(channels: int) -> tuple[int, ...]:
    return (3,) * (channels == 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_jpeg_file_is_kept_with_its_samples(channels: int) -> None:
    data = saved(noise(*shape(channels)), "JPEG", **METADATA) + b"more"
    picture = whole(data)
    assert picture.jpeg == data and picture.exif is None and picture.icc is None
    assert np.array_equal(picture.samples, read(data).samples)
    assert read(data).jpeg is None
    assert jpeg_shape(data) == (*SIZE, channels)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_file_without_its_metadata(progressive: bool) -> None:
    samples, options = noise(3), {"progressive": progressive, "restart_marker_rows": 1}
    plain = saved(samples, "JPEG", **options)
    full = saved(samples, "JPEG", **options, **METADATA)
    assert whole(full + b"secret", keep_metadata=False).jpeg == plain
    assert whole(plain, keep_metadata=False).jpeg == plain


def test_fill_bytes_between_markers_are_no_damage() -> None:
    data = saved(noise(3), "JPEG")
    filled = data[:2] + b"\xff\xff" + data[2:]
    assert whole(filled).jpeg == filled
    assert whole(filled, keep_metadata=False).jpeg == data


def test_damaged_jpeg_files_are_refused() -> None:
    data = saved(noise(3), "JPEG")
    for damaged in (data[:-200], data[:3], data[:30] + b"x" + data[30:]):
        for keep_metadata in (True, False):
            with pytest.raises(PictureError):
                whole(damaged, keep_metadata)


def test_other_kinds_of_jpeg_files_are_refused() -> None:
    data = saved(Image.new("CMYK", (4, 4)), "JPEG")
    with pytest.raises(PictureError, match="has 4 channels of 8 bits: expected 1 or 3 of 8 bits"):
        whole(data)


def test_a_jpeg_file_of_too_many_bytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(noise(), "JPEG", quality=50)
    monkeypatch.setattr(jpeg, "METADATA_LIMIT", 0)
    most = largest_jpeg(*SIZE)
    longest = data + bytes(most - len(data))
    assert whole(longest).jpeg == longest
    with pytest.raises(PictureError, match=f"more than the {most} that .* --drop-metadata"):
        whole(longest + b"x")
    assert whole(longest + b"x", keep_metadata=False).jpeg == data

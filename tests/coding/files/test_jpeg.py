"""Records of JPEG files."""

import io
import struct
from dataclasses import replace

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from italic.coding.files import jpeg, limited
from italic.coding.files.container import Colour, FileFormatError, Method, Record
from italic.coding.files.container.fields import varint
from italic.coding.files.jpeg import decode, encode, file_of
from italic.coding.files.pictures import from_array, read

EXIF = Image.Exif()
EXIF[271] = "maker"


def smooth(*channels: int, side: int = 160) -> np.ndarray:
    rng = np.random.default_rng(0)
    ramp = np.add.outer(np.arange(side), np.arange(side))
    return (
        ramp.reshape(*ramp.shape, *[1] * len(channels))
        + rng.integers(0, 20, (side, side, *channels))
    ).astype(np.uint8)


def saved(samples: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(samples).save(file, "JPEG", **options)
    return file.getvalue()


def record_of(data: bytes) -> Record:
    return encode(read(data, whole_jpeg=True))


@pytest.fixture(scope="module")
def transcoded() -> Record:
    record = record_of(saved(smooth(3), exif=EXIF))
    assert record.method == Method.JPEG_TRANSCODED
    return record


@pytest.mark.parametrize(
    ("samples", "options"),
    [
        (smooth(3), {"exif": EXIF, "comment": b"c", "xmp": b"<x/>"}),
        (smooth(3), {"progressive": True, "subsampling": 1}),
        (smooth(3), {"restart_marker_rows": 1, "subsampling": 0, "quality": 100}),
        (smooth(), {"quality": 90}),
    ],
)
def test_the_file_comes_back_in_fewer_bytes(
    samples: np.ndarray, options: dict[str, object]
) -> None:
    data = saved(samples, **options) + b"after the end"
    record = record_of(data)
    assert record.method == Method.JPEG_TRANSCODED and len(record.stream) < len(data)
    assert file_of(record) == data
    picture = decode(record)
    assert picture.jpeg == data and picture.colour == record.colour
    assert np.array_equal(picture.samples, read(data).samples)


def test_what_jpeg_xl_cannot_make_smaller_is_kept_as_it_is() -> None:
    small, profile = saved(smooth(3, side=8)), saved(smooth(3), icc_profile=b"no profile")
    with pytest.raises(RuntimeError):
        imagecodecs.jpegxl_encode_jpeg(profile)
    for data in (small, profile):
        record = record_of(data)
        assert (record.method, record.stream) == (Method.JPEG, data)
        picture = decode(record)
        assert picture.jpeg == data
        assert np.array_equal(picture.samples, read(data, False).samples)


def test_a_file_that_comes_back_changed_is_kept_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(smooth(3))
    other = bytes(imagecodecs.jpegxl_encode_jpeg(saved(smooth(3) + 1)))
    monkeypatch.setattr(imagecodecs, "jpegxl_encode_jpeg", lambda *_, **__: other)
    assert record_of(data).method == Method.JPEG


def test_other_pictures_are_no_jpeg_files() -> None:
    with pytest.raises(ValueError, match="expected a picture that was read from a JPEG file"):
        encode(from_array(smooth()))
    with pytest.raises(FileFormatError, match="is not a JPEG file"):
        file_of(Record(Method.RAW, 1, 1, 0, Colour.RGB))


def boxes_of(record: Record) -> list[tuple[bytes, bytes]]:
    """The boxes after the first two."""
    data = record.stream[len(varint(len(file_of(record)))) + 32 :]
    found = []
    while data:
        size, kind = struct.unpack_from(">I4s", data)
        found.append((kind, data[8:size]))
        data = data[size:]
    return found


def with_boxes(record: Record, boxes: list[tuple[bytes, bytes]]) -> Record:
    head = record.stream[: len(varint(len(file_of(record)))) + 32]
    parts = [struct.pack(">I4s", 8 + len(body), kind) + body for kind, body in boxes]
    return replace(record, stream=b"".join([head, *parts]))


def test_nothing_but_the_file_is_accepted(transcoded: Record) -> None:
    boxes = boxes_of(transcoded)
    assert with_boxes(transcoded, boxes) == transcoded
    assert [kind for kind, _ in boxes] == [b"jxlp", b"jbrd", b"brob", b"jxlp"]
    first, rebuild, metadata, (_, last) = boxes
    expected = "expected the boxes of one JPEG file"
    for changed, message in (
        ([*boxes, (b"xml ", b"<x/>")], expected),
        ([first, rebuild, rebuild, metadata, boxes[-1]], expected),
        ([first, metadata, boxes[-1]], expected),
        ([first, (b"jumb", bytes(9)), *boxes[1:]], expected),
        ([first, rebuild, metadata, (b"jxlp", b"\0\0\0\1" + last[4:])], expected),
        ([first, rebuild, metadata, (b"jxlp", last + b"\0")], "further bytes follow its end"),
        ([first, rebuild, metadata, (b"jxlp", last[:-1])], "can't be decoded"),
        ([(b"jxlp", first[1][:4] + b"\xff\x0b" + first[1][6:]), *boxes[1:]], expected),
        ([first, rebuild, (b"brob", metadata[1][:-1]), boxes[-1]], "JPEG_TRANSCODED picture in it"),
    ):
        with pytest.raises(FileFormatError, match=message):
            decode(with_boxes(transcoded, changed))


def test_damage_is_refused(transcoded: Record) -> None:
    stream = transcoded.stream
    for record in (
        replace(transcoded, stream=stream + b"\0"),
        replace(transcoded, stream=stream[:-1]),
        replace(transcoded, stream=b""),
        replace(transcoded, stream=b"\1" + stream[2:]),
        replace(transcoded, checksum=transcoded.checksum ^ 1),
        replace(transcoded, colour=Colour.GREY),
        replace(transcoded, method=Method.JPEG),
    ):
        with pytest.raises(FileFormatError, match=f"the {record.method.name} picture in it is dam"):
            decode(record)


@pytest.mark.parametrize("method", [Method.JPEG, Method.JPEG_TRANSCODED])
def test_other_sizes_are_refused(transcoded: Record, method: Method) -> None:
    stream = transcoded.stream if method == Method.JPEG_TRANSCODED else file_of(transcoded)
    record = replace(transcoded, method=method, stream=stream)
    assert decode(record).jpeg == file_of(transcoded)
    for height, width in ((80, 320), (160, 161), (2**14, 2**14), (1, 1)):
        with pytest.raises(FileFormatError, match=f"the {method.name} picture in it is damaged"):
            decode(replace(record, height=height, width=width))


def test_a_length_that_lies_costs_no_memory(
    transcoded: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = len(varint(len(file_of(transcoded))))
    monkeypatch.setattr(limited, "reconstruct_jpeg", lambda *_: pytest.fail("it was decoded"))
    lying = replace(transcoded, stream=varint(2**31) + transcoded.stream[start:])
    with pytest.raises(FileFormatError, match="2147483648 bytes are too many for a JPEG file"):
        decode(lying)


def test_many_scans_take_limited_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scans of a few bytes, each of which passes over the whole picture."""
    file = saved(np.zeros((256, 256), np.uint8), progressive=True)
    scan = file[file.rindex(b"\xff\xda") : -2]
    many = file[:-2] + 20_000 * scan + b"\xff\xd9"
    monkeypatch.setattr(limited, "SECONDS", 0.1)
    monkeypatch.setattr(limited, "SECONDS_PER_PIXEL", 0)
    record = Record(Method.JPEG, 256, 256, 0, Colour.GREY, stream=many)
    record = replace(record, checksum=jpeg.zlib.crc32(many))
    with pytest.raises(FileFormatError, match="more memory or time than a picture of its size"):
        decode(record)
    monkeypatch.undo()
    assert decode(record_of(file)).samples.shape == (256, 256)

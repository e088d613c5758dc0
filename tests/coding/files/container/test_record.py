"""The record of a coded picture: its bytes, and what it refuses."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import pytest

from italic.coding.files.container import (
    ArchiveReader,
    ArchiveWriter,
    FileFormatError,
    Method,
    Plan,
    Record,
    pack,
    unpack,
)
from tests.coding.files.container.records import (
    ARCHIVE,
    CRC,
    DIVIDED,
    ESTIMATED,
    HASH,
    KEPT,
    in_archive,
    sealed,
)


@pytest.mark.parametrize(
    "record, message",
    [
        ("", "the record is damaged: it has 0 bytes, expected 1 or more"),
        ("08 01 01", "has method 8: expected 0 to 7"),
        ("02 00 01", "0 × 1 pixels: expected sides of 1 to"),
        ("02 ffffffff0f 01", "4294967295 × 1 pixels: expected sides of 1 to"),
        ("02 81808008 80808004", "16777217 × 8388608 pixels: .* at most 2\\^32 pixels"),
        ("02 80808001 81808000", "not in its shortest form"),
        ("02 8000 01", "not in its shortest form"),
        ("02 8080808010 01", "number of 2\\^32 or more"),
        ("02 808080808001 01", "number of 2\\^32 or more"),
        ("02 808001 818001", "16384 × 16385 = 268451840 pixels, more .* 268435456: .* max_pixels"),
        (f"02 01 01 {CRC} 0a 00 00", "has colour 10: expected 0 to 9"),
        (f"02 01 01 {CRC} 00 21", "has 33 chunks: expected at most 32"),
        (f"02 01 01 {CRC} 00 02 0100 0100 00", "several chunks of type 1: expected one"),
        (f"02 01 01 {CRC} 00 02 ff00 ff00 00", "several chunks of type 255: expected one"),
        (f"02 01 01 {CRC} 00 00 02 70", "damaged: it has 11 bytes, expected 12 or more"),
        (f"02 01 01 {CRC} 00 00 01 70 6e", "damaged: 1 bytes follow its end"),
        (
            f"05 01 02 {CRC} 02 00 00",
            "a JPEG file has 0 chunks and colour 2: expected",
        ),
        (f"06 01 02 {CRC} 00 01 04 00 00", "the record of a JPEG file has 1 chunks and colour 0"),
        (f"00 01 02 {CRC} 00 00 00 00 00 00", "has 0 steps: expected 1 to 2, which is the number"),
        (f"00 01 02 {CRC} 00 00 03 00 00 00", "has 3 steps: expected 1 to 2, which is the number"),
        (f"00 01 02 {CRC} 00 00 01 03 00 00", "has plan 3: expected 0 to 2"),
    ],
)
def test_messages_of_records(record: str, message: str) -> None:
    data = bytes.fromhex(record)
    with pytest.raises(FileFormatError, match=message):
        Record.from_bytes(data)
    with pytest.raises(FileFormatError):
        unpack(sealed(data))


def estimated(**changes: object) -> Record:
    fields = {name: getattr(ESTIMATED, name) for name in ESTIMATED.__dataclass_fields__}
    return Record(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: estimated(method=8), "method 8"),
        (lambda: estimated(colour=-1), "colour -1"),
        (lambda: estimated(height=2**31), "2147483648 × 300 pixels"),
        (lambda: estimated(checksum=2**32), "checksum is 4294967296"),
        (lambda: estimated(steps=601), "601 steps: expected 1 to 600, which is the number"),
        (lambda: estimated(chunks=((6, b""),) * 33), "33 chunks: expected at most 32"),
        (lambda: estimated(chunks=((256, b""),)), "type 256: expected 0 to 255"),
        (lambda: estimated(chunks=((3, b""), (3, b"x"))), "several chunks of type 3"),
        (lambda: estimated(method=Method.PNG), "only the estimator, method 0 or 7, has these"),
        (lambda: Plan("quad"), "unknown plan 'quad': expected own, equal or power"),  # type: ignore
        (lambda: Plan("power", 2.205), "exponent 2.205: expected 0 to 655.35 in whole hundredths"),
        (lambda: Plan("power", 655.36), "exponent 655.36"),
        (lambda: Plan("power", float("nan")), "exponent nan"),
        (lambda: Plan("own", 1.0), "exponent 1.0: expected 0 to 0.0"),
        (lambda: pack(b"short", ESTIMATED), "hash has 5 bytes: expected 8"),
        (lambda: ArchiveWriter(io.BytesIO(), b""), "hash has 0 bytes: expected 8"),
        (
            lambda: estimated(height=2**16, width=2**16, steps=2**16 + 1),
            "65537 steps: expected 1 to 65536",
        ),
    ],
)
def test_what_the_format_cannot_hold_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        make()


def test_large_pictures_need_leave() -> None:
    data = pack(HASH, KEPT)
    assert unpack(data, max_pixels=1)[1] == KEPT
    large = pack(HASH, ESTIMATED)
    with pytest.raises(FileFormatError, match="2 × 300 = 600 pixels, more than the limit of 599"):
        unpack(large, max_pixels=599)
    reader = ArchiveReader(io.BytesIO(ARCHIVE), max_pixels=599)
    assert reader.read(1) == in_archive(KEPT)
    with pytest.raises(FileFormatError, match=r"picture 'a.png': the picture has 2 × 300 = 600"):
        reader.read(0)


DIVIDED_HEX = "07 02 ac02 78563412 01 00 04 02 dc00 8004 05 7061727473"
HEAD_HEX = "07 02 ac02 01 00 04 02 dc00 8004"


def test_golden_record() -> None:
    file = sealed(bytes.fromhex(DIVIDED_HEX))
    assert pack(HASH, DIVIDED) == file and unpack(file) == (HASH, DIVIDED)
    assert DIVIDED.parts() == (bytes.fromhex(HEAD_HEX), b"parts")
    written = io.BytesIO()
    writer = ArchiveWriter(written, HASH)
    writer.add("a", DIVIDED)
    writer.finish()
    assert ArchiveReader(written).read("a") == replace(DIVIDED, checksum=0x5678, short=True)


@pytest.mark.parametrize(
    "fields",
    [
        {"part": 0},
        {"part": 2**31},
        {"base": b"base"},
        {"method": Method.ESTIMATOR},
        {"method": Method.PNG, "steps": 0, "plan": Plan()},
    ],
)
def test_records_that_contradict_themselves_are_refused(fields: dict) -> None:
    with pytest.raises(FileFormatError, match="parts"):
        Record(**{**vars(DIVIDED), **fields})

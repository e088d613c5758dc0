"""The grid of a picture in parts, and the bytes of its record."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest

from italic.coding.files.container import (
    ArchiveReader,
    ArchiveWriter,
    Box,
    Colour,
    FileFormatError,
    Grid,
    Method,
    PartCodes,
    Plan,
    Record,
    pack,
    unpack,
)

HASH = b"modelsha"
DIVIDED = Record(
    *(Method.ESTIMATOR_PARTS, 2, 300, 0x12345678, Colour.GREY, (), 4, Plan("power", 2.2)),
    stream=b"parts",
    part=512,
)
DIVIDED_HEX = "07 02 ac02 78563412 01 00 04 02 dc00 8004 05 7061727473"
HEAD_HEX = "07 02 ac02 01 00 04 02 dc00 8004"


def sealed(body: bytes) -> bytes:
    data = bytes.fromhex("8949544c 03 00") + HASH + body
    return data + struct.pack("<I", zlib.crc32(data))


def test_golden_record() -> None:
    file = sealed(bytes.fromhex(DIVIDED_HEX))
    assert pack(HASH, DIVIDED) == file and unpack(file) == (HASH, DIVIDED)
    assert DIVIDED.parts() == (bytes.fromhex(HEAD_HEX), b"parts")
    written = io.BytesIO()
    writer = ArchiveWriter(written, HASH)
    writer.add("a", DIVIDED)
    writer.finish()
    assert ArchiveReader(written).read("a") == replace(DIVIDED, checksum=0x5678, short=True)


def test_records_that_end_early() -> None:
    file = pack(HASH, DIVIDED)
    for lacking in range(1, 9):
        _, record = unpack(file[:-lacking], partial=True)
        missing = max(0, lacking - 4)
        assert (record.missing, record.stream) == (missing, b"parts"[: 5 - missing])
        if missing:
            for store in (record.to_bytes, record.parts):
                with pytest.raises(FileFormatError, match=f"lacks {missing} bytes at its end"):
                    store()
        with pytest.raises(FileFormatError, match=r"is truncated, it lacks .*partial"):
            unpack(file[:-lacking])
    for damaged in (file[:20], file[:-5] + b"12345", file + b"1"):
        with pytest.raises(FileFormatError, match=r"CRC-32|truncated"):
            unpack(damaged, partial=True)


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


def test_grid() -> None:
    assert [len(Grid(n, 1, 8)) for n in (1, 11, 12, 19, 20)] == [1, 1, 2, 2, 3]
    for height, width, side in ((21, 30, 8), (1, 1, 1), (5, 7, 1), (100, 9, 512)):
        grid, covered = Grid(height, width, side), np.zeros((height, width), int)
        boxes = [grid.box(number) for number in range(len(grid))]
        for box in boxes:
            covered[box.slices] += 1
        assert (covered == 1).all()
        assert +grid.sizes() == {
            pixels: [box.pixels for box in boxes].count(pixels) for pixels in grid.sizes()
        }
        random = np.random.default_rng(0)
        for _ in range(20):
            top, left = int(random.integers(height)), int(random.integers(width))
            region = Box(top, left, int(random.integers(1, height - top + 1)), width - left)
            shared = [i for i, box in enumerate(boxes) if min(box.common(region)[2:]) > 0]
            assert grid.overlapping(region) == shared


def test_golden_block() -> None:
    grid = Grid(2, 3, 1)
    cells = [(b"", [bytes([i]), b"%d" % i * 2]) for i in range(5)] + [(b"base", [b"x", b""])]
    block = PartCodes.of(cells, 2).to_bytes()
    expected = "00 00 00 00 00 0462617365" + "01" * 6 + "0202020202 00"
    expected += "00 01 02 03 04 78 3030 3131 3232 3333 3434"
    assert block == bytes.fromhex(expected)
    with pytest.raises(FileFormatError, match="part 0 has more than 1 steps"):
        PartCodes.from_bytes(block, grid, 2)
    codes = PartCodes.from_bytes(block, Grid(4, 6, 2), 2)
    assert codes.stream(3, 2) == b"\x0333" and codes.bases[5] == b"base"
    assert codes.stream(3, 1) == b"\x03" and codes.whole_steps == 2

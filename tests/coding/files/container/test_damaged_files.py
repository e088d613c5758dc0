"""Damage in files of both kinds, wherever it is, is refused without other errors."""

from __future__ import annotations

import io
import random
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress

import pytest

from italic.coding.files.container import ArchiveReader, FileFormatError, Record, unpack
from tests.coding.files.container.records import (
    ARCHIVE,
    ARCHIVE_INDEX,
    BODIES,
    CRC,
    ESTIMATED,
    KEPT,
    PICTURE,
    read_all,
    sealed,
    with_index,
)


@pytest.mark.parametrize("whole, read", [(PICTURE, unpack), (ARCHIVE, read_all)])
def test_every_cut_and_every_changed_byte_is_refused(
    whole: bytes, read: Callable[[bytes], object]
) -> None:
    read(whole)
    for position in range(len(whole)):
        with pytest.raises(FileFormatError):
            read(whole[:position])
        for change in (0x01, 0x80, 0xFF):
            damaged = bytearray(whole)
            damaged[position] ^= change
            with pytest.raises(FileFormatError):
                read(bytes(damaged))
    with pytest.raises(FileFormatError):
        read(whole + b"\0")


def accepted(read: Callable[[bytes], Record], data: bytes) -> bool:
    """Whether `data` is accepted as a record; the record must then serialise to `data`."""
    try:
        record = read(data)
    except FileFormatError:
        return False
    assert record.to_bytes() == data
    return True


def test_garbage_is_refused_without_other_errors() -> None:
    generator = random.Random(0)
    good, heads = [ESTIMATED.to_bytes(), KEPT.to_bytes()], [ESTIMATED.parts(), KEPT.parts()]
    count = 0
    for _ in range(3000):
        noise = generator.randbytes(generator.randrange(60))
        for prefix in (b"", PICTURE[:14], ARCHIVE[:14]):
            with pytest.raises(FileFormatError):
                unpack(prefix + noise)
            with pytest.raises(FileFormatError):
                read_all(prefix + noise)
        # With correct checksums only the parsers can detect damage.
        accepted(lambda data: unpack(sealed(data))[1], noise)
        changed = bytearray(generator.choice(good))
        changed[generator.randrange(len(changed))] = generator.randrange(256)
        count += accepted(lambda data: unpack(sealed(data))[1], bytes(changed))
        head, body = generator.choice(heads)
        changed = bytearray(head + body)
        changed[generator.randrange(len(changed))] = generator.randrange(256)
        with suppress(FileFormatError):
            read = Record.from_parts(changed[: len(head)], 5, changed[len(head) :])
            assert read.parts() == (changed[: len(head)], changed[len(head) :])
        for compressed in (noise, zlib.compress(noise)):
            with pytest.raises(FileFormatError):
                read_all(with_index(compressed, BODIES))
        damaged = bytearray(ARCHIVE_INDEX)
        damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        with suppress(FileFormatError):  # names, checks and heads may be changed
            assert len(read_all(with_index(zlib.compress(damaged), BODIES))) == 2
    assert 100 < count < 2900  # the parser does not detect changed contents


def test_lengths_that_lie_cost_no_memory() -> None:
    big = "ffffffff0f"
    huge = [
        sealed(bytes.fromhex(f"02 01 01 {CRC} 00 00 {big}")),
        sealed(bytes.fromhex(f"02 01 01 {CRC} 00 01 01 {big}")),
        sealed(bytes.fromhex(f"02 01 01 {CRC} 00 {big}")),
    ]
    lists = [bytes.fromhex(f"{big}"), bytes.fromhex(f"00 {big}"), bytes.fromhex(f"01 {big}")]
    tracemalloc.start()
    for data in huge:
        with pytest.raises(FileFormatError):
            unpack(data)
    for index in lists:
        with pytest.raises(FileFormatError):
            ArchiveReader(io.BytesIO(with_index(zlib.compress(index), bytes(14))))
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()

"""Files of one picture."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from italic.coding.files import container
from italic.coding.files.container import FileFormatError, Record, kind_of, pack, unpack
from tests.coding.files.container.records import (
    ARCHIVE,
    DIVIDED,
    ESTIMATED,
    HASH,
    PICTURE,
    quick,
    records,
)


def test_golden_picture() -> None:
    assert pack(HASH, ESTIMATED) == PICTURE
    assert unpack(PICTURE) == (HASH, ESTIMATED)


@quick
@given(st.binary(min_size=8, max_size=8), records())
def test_pictures_come_back(model_hash: bytes, record: Record) -> None:
    data = pack(model_hash, record)
    assert kind_of(data) == kind_of(data[:6]) == "picture"
    assert unpack(data, max_pixels=2**32) == (model_hash, record)


HEAD = container.MAGIC + b"\3"


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", r"not an ITALIC file: it begins with b'', expected b'\\x89ITL'"),
        (b"\x89PNG\r\n", r"not an ITALIC file: it begins with b'\\x89PNG'"),
        (container.MAGIC + b"\2\0", "damaged: it has version 2 and kind 0, expected version 3"),
        (HEAD, "truncated: it ends after 5 bytes"),
        (container.MAGIC + b"\7\0", "version 7 of a newer ITALIC, .* version 3: update"),
        (container.MAGIC + b"\1\0", "damaged: it has version 1 and kind 0, expected version 3"),
        (HEAD + b"\1", "damaged: it has version 3 and kind 1, expected version 3 and kind 0, or"),
        (HEAD + b"\2", "damaged: it has version 3 and kind 2, expected version 3 and kind 0, or"),
        (container.MAGIC + b"\4\0", "version 4 and kind 0, expected version 3 and kind 0, or"),
        (HEAD + b"\0", "truncated: it ends after 6 bytes"),
        (PICTURE[:27], "truncated: it has 27 bytes, expected at least 28"),
        (
            PICTURE[:-1],
            "truncated, it lacks its last bytes: italic decompress --partial",
        ),
        (
            PICTURE[:-1] + b"\0",
            "the file is damaged: its CRC-32 is [0-9a-f]{8}, expected [0-9a-f]{8}",
        ),
        (ARCHIVE, "holds an archive of pictures: read it with ArchiveReader"),
    ],
)
def test_messages_of_pictures(data: bytes, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        unpack(data)


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

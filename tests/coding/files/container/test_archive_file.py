"""Archives with random access."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from italic.coding.files import container
from italic.coding.files.container import (
    ArchiveReader,
    ArchiveWriter,
    Colour,
    FileFormatError,
    Method,
    Record,
    archive_index,
    kind_of,
    pack,
)
from tests.coding.files.container.records import (
    ARCHIVE,
    ARCHIVE_INDEX,
    BODIES,
    ESTIMATED,
    HASH,
    KEPT,
    PICTURE,
    archive,
    in_archive,
    names,
    quick,
    read_all,
    records,
    with_index,
)


def test_golden_archive() -> None:
    pictures = {"a.png": ESTIMATED, "sub/ü.png": KEPT}
    assert read_all(ARCHIVE) == [in_archive(record) for record in pictures.values()]
    assert ArchiveReader(io.BytesIO(ARCHIVE)).names == tuple(pictures)
    written = archive(pictures, bytes(8))
    # Another build of zlib may compress the index differently.
    start = 14 + len(BODIES)
    assert written[:start] == ARCHIVE[:start]
    assert zlib.decompress(written[start:-16]) == ARCHIVE_INDEX


@quick
@given(st.binary(min_size=8, max_size=8), st.dictionaries(names, records(), max_size=4))
def test_archives_come_back(model_hash: bytes, pictures: dict[str, Record]) -> None:
    data = archive(pictures, model_hash)
    assert kind_of(data) == kind_of(data[:6]) == "archive"
    reader = ArchiveReader(io.BytesIO(data), max_pixels=2**32)
    assert (reader.model_hash, reader.names, len(reader)) == (
        model_hash,
        tuple(pictures),
        len(pictures),
    )
    assert reader.sizes == tuple(len(record.parts()[1]) for record in pictures.values())
    for place in reversed(range(len(pictures))):
        record = in_archive(pictures[reader.names[place]])
        assert reader.read(place) == reader.read(reader.names[place]) == record
        assert reader.read(place - len(pictures)) == record


def test_damage_of_a_record_affects_its_group_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_index, "GROUP", 6)
    data = archive({f"{place}.png": KEPT for place in range(5)} | {"e.png": ESTIMATED})
    reader = ArchiveReader(io.BytesIO(data))
    assert reader.index.groups == [2, 2, 1, 1]  # of 3, 3 and 3, 3 and 3 and 18 bytes
    damaged = bytearray(data)
    damaged[14] ^= 1
    reader = ArchiveReader(io.BytesIO(damaged))
    message = r"picture '1.png': its record or a neighbour is damaged: its CRC-32"
    with pytest.raises(FileFormatError, match=message):
        reader.read("1.png")
    assert [reader.read(place) for place in range(2, 5)] == 3 * [in_archive(KEPT)]
    alone = bytearray(archive({"e.png": ESTIMATED}))
    alone[14] ^= 1
    with pytest.raises(FileFormatError, match=r"'e.png': its record is damaged: its CRC-32"):
        ArchiveReader(io.BytesIO(alone)).read(0)


def test_the_checksums_of_an_archive_have_16_bits() -> None:
    record = ArchiveReader(io.BytesIO(ARCHIVE)).read(0)
    assert record.checksum == 0x5678 and record.short
    assert record.agrees(0x12345678) and record.agrees(0x5678) and not record.agrees(0x12345679)
    assert ESTIMATED.agrees(0x12345678) and not ESTIMATED.agrees(0x5678)
    with pytest.raises(FileFormatError, match="short checksum"):
        pack(HASH, record)


def test_copying_an_archive_and_adding_to_it() -> None:
    old = ArchiveReader(io.BytesIO(ARCHIVE))
    file = io.BytesIO()
    writer = ArchiveWriter(file, HASH)
    writer.add("first.png", KEPT)
    writer.copy(old)
    writer.add("last.png", ESTIMATED)
    with pytest.raises(FileFormatError, match=r"already holds a picture 'a\.png'"):
        writer.add("a.png", KEPT)
    writer.finish()
    reader = ArchiveReader(io.BytesIO(file.getvalue()))
    assert reader.names == ("first.png", "a.png", "sub/ü.png", "last.png")
    expected = [in_archive(record) for record in (KEPT, ESTIMATED, KEPT, ESTIMATED)]
    assert read_all(file.getvalue()) == expected
    damaged = bytearray(ARCHIVE)
    damaged[20] ^= 1
    writer = ArchiveWriter(io.BytesIO(), HASH)
    with pytest.raises(FileFormatError, match="its record or a neighbour is damaged"):
        writer.copy(ArchiveReader(io.BytesIO(damaged)))
    with pytest.raises(ValueError, match="the archive is finished"):
        writer.finish()


def test_an_archive_that_an_error_ended_cannot_be_finished() -> None:
    writer = ArchiveWriter(io.BytesIO(), HASH)
    writer.add("sub/ü.png", KEPT)  # the second name of the copied archive
    with pytest.raises(FileFormatError, match=r"already holds a picture 'sub/ü\.png'"):
        writer.copy(ArchiveReader(io.BytesIO(ARCHIVE)))
    with pytest.raises(ValueError, match="ended by an error"):
        writer.finish()

    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            if self.tell():
                raise OSError("no space left on device")
            return super().write(data)

    writer = ArchiveWriter(Full(), HASH)
    with pytest.raises(OSError, match="no space"):
        writer.add("a.png", KEPT)
    with pytest.raises(ValueError, match="ended by an error"):
        writer.finish()


def listing(
    *names: bytes,
    shared: bytes | None = None,
    kinds: bytes | None = None,
    sizes: bytes | None = None,
    groups: bytes | None = None,
) -> bytes:
    """An archive of pictures of 3 bytes, by default in one group, with an index of these bytes."""
    count = len(names)
    columns = [shared or bytes(2 * count), b"".join(map(with_length, names))]
    columns += [kinds or bytes(count), sizes or count * b"\3" + bytes(count), count * b"\5\0"]
    columns.append(groups or bytes([1, count]) + struct.pack("<I", zlib.crc32(count * b"png")))
    index = bytes.fromhex("01 05 02 01 01 09 00") + bytes([count]) + b"".join(columns)
    return with_index(zlib.compress(index), count * b"png")


def with_length(name: bytes) -> bytes:
    return b"".join(container.fields.block(name))


@pytest.mark.parametrize(
    "data, message",
    [
        (PICTURE, "holds one picture: read it with unpack"),
        (ARCHIVE[:10], "truncated: it ends after 10 bytes"),
        (ARCHIVE[:29], "truncated: it has 29 bytes, expected more than 30"),
        (ARCHIVE[:-1], "truncated or was not finished: its last bytes are .*, expected b'LTI"),
        (ARCHIVE[:-16] + b"\xff" * 8 + ARCHIVE[-8:], "index of 18446744073709551615 bytes"),
        (ARCHIVE[:-17] + b"x" + ARCHIVE[-16:], "the archive's index is damaged: its CRC-32"),
        (with_index(b"zlib?"), "can't be decompressed"),
        (with_index(b""), "longer or shorter than its compressed data"),
        (with_index(zlib.compress(bytes(3)) + b"x"), "longer or shorter than its compressed data"),
        (with_index(zlib.compress(bytes(3))[:-1]), "longer or shorter than its compressed data"),
        (with_index(zlib.compress(bytes(2**18))), "its index decompresses to more than"),
        (with_index(zlib.compress(b"\0\0\0x")), "index is damaged: 1 bytes follow its end"),
        (with_index(zlib.compress(bytes(3)), b"x"), "lists 0 bytes of records, but the file has 1"),
        (with_index(zlib.compress(b"\0\7")), "lists 7 pictures, more than fit into 2"),
        (with_index(zlib.compress(b"\0\xff\xff\xff\xff\x0f")), "lists 4294967295 pictures"),
        (with_index(zlib.compress(b"\1")), "has 1 bytes, expected 2 or more"),
        (listing(b""), "'' is not a valid name: expected"),
        (listing(b".."), "'..' is not a valid name"),
        (listing(b"/a"), "'/a' is not a valid name"),
        (listing(b"\xff"), "not valid UTF-8"),
        (listing(b"a" * 12345), "name has 12345 bytes"),
        (listing(b"a/" * 32 + b"b"), "a name has 33 parts"),
        (listing(b"a", b"a"), "it has 'a' twice"),
        (listing(b"ab", b"", shared=b"\0\2\0\0"), "it has 'ab' twice"),
        (listing(b"ab", b"x", shared=b"\0\2\0\1"), "more in common with the one before"),
        (listing(b"a", kinds=b"\1"), "a head that is not in it"),
        (listing(b"a", sizes=b"\4\0"), "lists 4 bytes of records, but the file has 3"),
        (listing(b"a", groups=b"\0"), "its groups have 0 of 1 pictures"),
        (listing(b"a", groups=b"\2\1\0" + bytes(8)), "a group has 0 pictures of 0 bytes"),
        (listing(b"a", groups=b"\x09"), "it has fewer than 9 numbers left"),
    ],
)
def test_messages_of_archives(data: bytes, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        ArchiveReader(io.BytesIO(data))


def test_no_such_picture() -> None:
    reader = ArchiveReader(io.BytesIO(ARCHIVE))
    with pytest.raises(KeyError):
        reader.read("b.png")
    with pytest.raises(IndexError):
        reader.read(2)


class CountingFile(io.BytesIO):
    count = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data


def test_only_what_is_needed_is_read() -> None:
    large = Record(Method.RAW, 100, 100, 1, Colour.RGB, stream=bytes(30000))
    data = archive({f"{place}.png": large if place else KEPT for place in range(50)})
    file = CountingFile(data)
    reader = ArchiveReader(file)
    assert file.count == len(data) - sum(reader.sizes) < 1000
    file.count = 0
    assert reader.read("0.png") == in_archive(KEPT)
    group = sum(reader.sizes[: reader.index.groups[0]])
    assert file.count == group + 3 <= archive_index.GROUP + 3  # its group, then itself
    file.count = 0
    assert reader.read("0.png") == in_archive(KEPT) and file.count == 3
    file.count = 0
    assert reader.read(7) == in_archive(large)
    assert file.count == 2 * reader.sizes[7]


class Pipe(io.RawIOBase):
    """A file that supports only writing."""

    def __init__(self) -> None:
        self.data = b""

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.data += data
        return len(data)


def test_archives_are_written_without_seeking() -> None:
    pipe = Pipe()
    writer = ArchiveWriter(pipe, bytes(8))  # type: ignore[arg-type]
    writer.add("a.png", ESTIMATED)
    writer.add("sub/ü.png", KEPT)
    writer.finish()
    assert read_all(pipe.data) == [in_archive(ESTIMATED), in_archive(KEPT)]

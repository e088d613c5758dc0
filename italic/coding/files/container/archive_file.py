"""Archives: files of many pictures with random access."""

from __future__ import annotations

import struct
import zlib
from itertools import accumulate
from typing import BinaryIO

from italic.coding.files.container.fields import (
    CHECKSUM,
    Cursor,
    FileFormatError,
    block,
    check_crc,
    checked,
    varint,
)
from italic.coding.files.container.header import HEADER, MAGIC, file_header, read_header
from italic.coding.files.container.record import DEFAULT_MAX_PIXELS, SMALLEST_RECORD, Record

END_MAGIC = MAGIC[::-1]
MAX_NAME = 4096  # bytes: the longest path of Linux
MAX_PARTS = 32  # of a name: otherwise a few bytes of an index could create very many folders
MAX_INDEX = 2**26  # bytes, decompressed
_TRAILER = struct.Struct("<QI4s")
_INDEX_SLACK = 2**16  # bytes; zlib adds less than this to an index that it cannot make smaller


class ArchiveWriter:
    """Writes an archive sequentially; the file need not be seekable.

    Args:
        file: a file open for writing in binary mode; the writer does not close it.
        model_hash: the first 8 bytes of the model's SHA-256; zeros if no picture needs a model.

    Raises:
        FileFormatError: the hash has another length.
    """

    def __init__(self, file: BinaryIO, model_hash: bytes) -> None:
        self._file = file
        self._header = file_header("archive", model_hash)
        self._names: set[str] = set()
        self._entries = bytearray()
        self._finished = False
        file.write(self._header)

    def add(self, name: str, record: Record) -> None:
        """Write a picture.

        Args:
            name: relative POSIX path in normal form (no `.`, `..` or empty part), at most 4096
                bytes in UTF-8 and 32 parts, different from the other names in the archive.
            record: the picture.

        Raises:
            FileFormatError: the name is invalid, the record has 2^32 bytes or more, or the index is
                full. Nothing is written then, and further pictures can be added.
        """
        self._check_open()
        encoded = _encode_name(name)
        if name in self._names:
            raise FileFormatError(f"the archive already holds a picture {name!r}: rename one")
        data = record.to_bytes()
        entry = b"".join([*block(encoded), varint(len(data))])
        if len(varint(len(self._names) + 1)) + len(self._entries) + len(entry) > MAX_INDEX:
            raise FileFormatError(
                f"the archive is full: with {len(self._names)} pictures its index has the "
                f"{MAX_INDEX >> 20} MiB that the format allows; write another archive"
            )
        self._file.write(data)
        self._file.write(CHECKSUM.pack(zlib.crc32(data)))
        self._names.add(name)
        self._entries += entry

    def finish(self) -> None:
        """Write the index; an archive without it can't be read."""
        self._check_open()
        index = zlib.compress(varint(len(self._names)) + self._entries, 9)
        checksum = zlib.crc32(index, zlib.crc32(self._header))
        self._file.write(index)
        self._file.write(_TRAILER.pack(len(index), checksum, END_MAGIC))
        self._finished = True

    def _check_open(self) -> None:
        if self._finished:
            raise ValueError("the archive is finished: no more pictures can be added")


class ArchiveReader:
    """Random access to the pictures of an archive; opening it reads only the header and the index.

    Not thread-safe, since threads would share the file's position.

    Args:
        file: a seekable file open for reading in binary mode that holds nothing but the archive;
            the reader does not close it.
        max_pixels: maximum number of pixels; larger pictures are refused when they are read.

    Attributes:
        model_hash: the first 8 bytes of the model's SHA-256.
        names: names of the pictures, in the order of the file.
        sizes: sizes of their records in bytes, without the CRC-32 that follows each record.

    Raises:
        FileFormatError: it is not an archive, or is damaged.
    """

    def __init__(self, file: BinaryIO, max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
        self._file, self._max_pixels = file, max_pixels
        size = file.seek(0, 2)
        header = self._read(0, min(size, HEADER.size))
        self.model_hash = read_header(header, "archive")
        if size < HEADER.size + _TRAILER.size:
            raise FileFormatError(
                f"the archive is truncated: it has {size} bytes, expected more than "
                f"{HEADER.size + _TRAILER.size}"
            )
        length, checksum, magic = _TRAILER.unpack(self._read(size - _TRAILER.size, _TRAILER.size))
        if magic != END_MAGIC:
            raise FileFormatError(
                f"the archive is truncated or was not finished: its last bytes are {magic!r}, "
                f"expected {END_MAGIC!r}"
            )
        records = size - HEADER.size - _TRAILER.size - length  # bytes of all records and CRCs
        if records < 0 or length > MAX_INDEX + _INDEX_SLACK:
            raise FileFormatError(
                f"the archive is damaged: its index of {length} bytes is longer than the file or "
                "the format allows"
            )
        index = self._read(HEADER.size + records, length)
        check_crc("the archive's index", zlib.crc32(index, zlib.crc32(header)), checksum)
        entries = _read_index(_decompress(index), records)
        self.names = tuple(entries)
        self.sizes = tuple(entries.values())
        self._places = dict(zip(entries, range(len(entries)), strict=True))
        steps = (size + CHECKSUM.size for size in self.sizes)
        self._offsets = tuple(accumulate(steps, initial=HEADER.size))

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.names)

    def read(self, picture: str | int) -> Record:
        """Read a picture by its name or its index in `names`.

        Raises:
            KeyError: there is no such name.
            IndexError: there is no such index.
            FileFormatError: the record is damaged, or the picture is too large.
        """
        place = self._places[picture] if isinstance(picture, str) else range(len(self))[picture]
        data = self._read(self._offsets[place], self.sizes[place] + CHECKSUM.size)
        try:
            return Record.from_bytes(checked("its record", memoryview(data)), self._max_pixels)
        except FileFormatError as error:
            raise FileFormatError(f"picture {self.names[place]!r}: {error}") from None

    def _read(self, offset: int, count: int) -> bytes:
        self._file.seek(offset)
        data = self._file.read(count)
        if len(data) != count:
            raise FileFormatError(
                f"the archive changed while it was read: got {len(data)} bytes at byte {offset}, "
                f"expected {count}"
            )
        return data


def _decompress(index: bytes) -> bytes:
    """Decompress the index, at most the size that the format allows."""
    decompressor = zlib.decompressobj()
    try:
        data = decompressor.decompress(index, MAX_INDEX + 1)
    except zlib.error as error:
        raise FileFormatError(
            f"the archive is damaged: its index can't be decompressed ({error})"
        ) from None
    if len(data) > MAX_INDEX:
        raise FileFormatError(
            f"the archive is damaged: its index exceeds the {MAX_INDEX >> 20} MiB that the format "
            "allows"
        )
    if not decompressor.eof or decompressor.unused_data:
        raise FileFormatError(
            "the archive is damaged: its index is longer or shorter than its compressed data"
        )
    return data


def _read_index(data: bytes, records: int) -> dict[str, int]:
    """Parse the index: sizes of the records by name.

    The records and their CRCs must fill `records` bytes.
    """
    cursor = Cursor(data, "the archive's index")
    count = cursor.varint()
    if count > records // (SMALLEST_RECORD + CHECKSUM.size):
        raise FileFormatError(
            f"the archive's index is damaged: it lists {count} pictures, more than fit into "
            f"{records} bytes"
        )
    entries: dict[str, int] = {}
    for _ in range(count):
        name = _decode_name(cursor.block())
        if name in entries:
            raise FileFormatError(f"the archive's index is damaged: it has {name!r} twice")
        entries[name] = cursor.varint()
    cursor.finish()
    total = sum(entries.values()) + CHECKSUM.size * count
    if total != records:
        raise FileFormatError(
            f"the archive's index is damaged: it lists {total} bytes of records, but the file has "
            f"{records}"
        )
    return entries


def _encode_name(name: str) -> bytes:
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        raise FileFormatError(f"the name {name!r} is not valid Unicode: rename the file") from None
    _decode_name(encoded)
    return encoded


def _decode_name(encoded: bytes) -> str:
    """Decode and check a picture's name, so that it is safe to join with a folder's path."""
    if len(encoded) > MAX_NAME:
        raise FileFormatError(f"a name has {len(encoded)} bytes: expected at most {MAX_NAME}")
    try:
        name = encoded.decode()
    except UnicodeDecodeError:
        raise FileFormatError(f"a name is not valid UTF-8: {encoded!r}") from None
    parts = name.split("/")
    if len(parts) > MAX_PARTS:
        raise FileFormatError(
            f"a name has {len(parts)} parts: expected at most {MAX_PARTS}, folders included"
        )
    # An absolute path has an empty first part; the empty name consists of one empty part.
    if "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise FileFormatError(
            f"{name!r} is not a valid name: expected a relative path such as 'a/b.png', without "
            "'.', '..', empty parts and NUL"
        )
    return name

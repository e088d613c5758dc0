"""Archives: files of many pictures with random access."""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate
from typing import BinaryIO

from italic.coding.files.container import archive_index
from italic.coding.files.container.archive_index import Index, encode_name
from italic.coding.files.container.fields import (
    FileFormatError,
    check_crc,
    inflate,
    varint,
)
from italic.coding.files.container.header import HEADER, MAGIC, file_header, read_header
from italic.coding.files.container.record import (
    DEFAULT_MAX_PIXELS,
    ESTIMATOR_METHODS,
    JPEG_METHODS,
    Record,
)

END_MAGIC = MAGIC[::-1]
# The index is at most this many times as long as when compressed, plus the slack: a small file must
# not list millions of pictures.
MAX_RATIO = 4
SLACK = 2**16  # bytes; zlib adds less than this to an index that it can't make smaller
_TRAILER = struct.Struct("<QI4s")
_COPIED = 2**20  # bytes of records that are copied at a time


class ArchiveWriter:
    """Writes an archive sequentially; the file need not be seekable.

    After `finish`, or after an error while pictures were written, its methods raise a ValueError.

    Args:
        file: a file open for writing in binary mode; the writer does not close it.
        model_hash: the first 8 bytes of the model's SHA-256; zeros if no picture needs a model.

    Raises:
        FileFormatError: the hash has another length.
    """

    def __init__(self, file: BinaryIO, model_hash: bytes) -> None:
        self._file = file
        self._header = file_header("archive", model_hash)
        self._index = Index()
        self._names: set[str] = set()
        self._kinds: dict[bytes, int] = {}  # positions in the index's heads
        self._size = 0  # bytes of the index and of all names, at most
        self._group = 0  # bytes of the last group
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
        head, body = record.parts()
        varint(len(body))  # checks the length
        self._enter(name, head, len(body), record.checksum & 0xFFFF)
        index = self._index
        if index.groups and self._group + len(body) <= archive_index.GROUP:
            index.groups[-1] += 1
            index.checksums[-1] = zlib.crc32(body, index.checksums[-1])
            self._group += len(body)
        else:
            index.groups.append(1)
            index.checksums.append(zlib.crc32(body))
            self._group = len(body)
        self._finished = True  # until the body is written
        self._file.write(body)
        self._finished = False

    def copy(self, reader: ArchiveReader) -> None:
        """Write all pictures of another archive, without decoding them.

        Raises:
            FileFormatError: a name is in this archive already, or the other archive is damaged.
                This archive can't be finished then.
        """
        self._check_open()
        self._finished = True  # until all of the other archive is here
        other = reader.index
        for name, kind, length, check in zip(
            other.names, other.kinds, other.lengths, other.checks, strict=True
        ):
            self._enter(name, other.heads[kind], length, check)
        self._index.groups += other.groups
        self._index.checksums += other.checksums
        self._group = archive_index.GROUP  # the next picture begins a group
        for part in reader.bodies():
            self._file.write(part)
        self._finished = False

    def finish(self) -> None:
        """Write the index; an archive without it can't be read."""
        self._check_open()
        plain = self._index.to_bytes()
        index = zlib.compress(plain, 9)
        if len(plain) > MAX_RATIO * len(index) + SLACK:
            index = zlib.compress(plain, 0)
        checksum = zlib.crc32(index, zlib.crc32(self._header))
        self._file.write(index)
        self._file.write(_TRAILER.pack(len(index), checksum, END_MAGIC))
        self._finished = True

    def _enter(self, name: str, head: bytes, length: int, check: int) -> None:
        """Enter a picture into the index."""
        encoded = encode_name(name)
        if name in self._names:
            raise FileFormatError(f"the archive already holds a picture {name!r}: rename one")
        # The name, four numbers of up to 5 bytes, check, group and its CRC-32; perhaps a new head.
        size = len(encoded) + 32 + (0 if head in self._kinds else len(head) + 5)
        if self._size + size > archive_index.MAX_INDEX:
            raise FileFormatError(
                f"the archive is full: with {len(self._names)} pictures its index has the "
                f"{archive_index.MAX_INDEX >> 20} MiB that the format allows; write another archive"
            )
        self._size += size
        self._names.add(name)
        index = self._index
        kind = self._kinds.setdefault(head, len(index.heads))
        if kind == len(index.heads):
            index.heads.append(head)
        index.names.append(name)
        index.kinds.append(kind)
        index.lengths.append(length)
        index.checks.append(check)

    def _check_open(self) -> None:
        if self._finished:
            raise ValueError("the archive is finished, or ended by an error: no more can be added")


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
        sizes: sizes of their records in bytes, without the part in the index.

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
        bodies = size - HEADER.size - _TRAILER.size - length  # bytes of all bodies
        if bodies < 0 or length > archive_index.MAX_INDEX + SLACK:
            raise FileFormatError(
                f"the archive is damaged: its index of {length} bytes is longer than the file or "
                "the format allows"
            )
        compressed = self._read(HEADER.size + bodies, length)
        check_crc("the archive's index", zlib.crc32(compressed, zlib.crc32(header)), checksum)
        self.index = Index.from_bytes(_decompress(compressed), bodies)
        self.names = tuple(self.index.names)
        self.sizes = tuple(self.index.lengths)
        self._places = dict(zip(self.names, range(len(self.names)), strict=True))
        self._offsets = tuple(accumulate(self.sizes, initial=HEADER.size))
        self._starts = tuple(accumulate(self.index.groups, initial=0))  # first pictures of groups
        self._checked: set[int] = set()  # groups whose CRC-32 is right

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.names)

    @property
    def needs_model(self) -> bool:
        """Whether a picture is coded by the estimator."""
        return any(head[:1] in map(_byte, ESTIMATOR_METHODS) for head in self.index.heads)

    def holds_jpeg(self, place: int) -> bool:
        """Whether the picture at an index in `names` is a JPEG file."""
        return self.index.heads[self.index.kinds[place]][:1] in map(_byte, JPEG_METHODS)

    def read(self, picture: str | int) -> Record:
        """Read a picture by its name or its index in `names`.

        Raises:
            KeyError: there is no such name.
            IndexError: there is no such index.
            FileFormatError: the group of the record is damaged, or the picture is too large.
        """
        place = self._places[picture] if isinstance(picture, str) else range(len(self))[picture]
        index = self.index
        try:
            self._check(bisect_right(self._starts, place) - 1)
            return Record.from_parts(
                index.heads[index.kinds[place]],
                index.checks[place],
                self._read(self._offsets[place], self.sizes[place]),
                self._max_pixels,
            )
        except FileFormatError as error:
            raise FileFormatError(f"picture {self.names[place]!r}: {error}") from None

    def bodies(self) -> Iterable[bytes]:
        """The bytes of all records, in parts.

        Raises:
            FileFormatError: a group is damaged.
        """
        for group in range(len(self.index.groups)):
            yield from self._group(group)

    def _check(self, group: int) -> None:
        """Check the CRC-32 of a group; FileFormatError."""
        if group not in self._checked:
            for _ in self._group(group):
                pass
            self._checked.add(group)

    def _group(self, group: int) -> Iterable[bytes]:
        """The bytes of a group, in parts; FileFormatError after the last if they are damaged."""
        start, end = (self._offsets[place] for place in self._starts[group : group + 2])
        checksum = 0
        for offset in range(start, end, _COPIED):
            part = self._read(offset, min(_COPIED, end - offset))
            checksum = zlib.crc32(part, checksum)
            yield part
        what = "its record" if self.index.groups[group] == 1 else "its record or a neighbour"
        check_crc(what, checksum, self.index.checksums[group])

    def _read(self, offset: int, count: int) -> bytes:
        self._file.seek(offset)
        data = self._file.read(count)
        if len(data) != count:
            raise FileFormatError(
                f"the archive changed while it was read: got {len(data)} bytes at byte {offset}, "
                f"expected {count}"
            )
        return data


def _byte(number: int) -> bytes:
    return bytes([number])


def _decompress(index: bytes) -> bytes:
    """Decompress the index, at most the size that the format allows."""
    most = min(archive_index.MAX_INDEX, MAX_RATIO * len(index) + SLACK)
    try:
        return inflate(index, most)
    except ValueError as error:
        raise FileFormatError(f"the archive is damaged: its index {error}") from None

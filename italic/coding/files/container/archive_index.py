"""The index of an archive: the names of its pictures, and where they are."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from italic.coding.files.container.fields import (
    CHECKSUM,
    Cursor,
    FileFormatError,
    block,
    varint,
)

MAX_NAME = 4096  # bytes: the longest path of Linux
MAX_PARTS = 32  # of a name: otherwise a few bytes of an index could create very many folders
MAX_INDEX = 2**26  # bytes, decompressed, and of all names
GROUP = 2**15  # bytes of the records under one CRC-32, unless it is a single record
_CHECK = struct.Struct("<H")  # low bits of a record's checksum
_SMALLEST_ENTRY = 8  # bytes of a picture in the index


@dataclass
class Index:
    """The index of an archive, a column for each field of the pictures."""

    heads: list[bytes] = field(default_factory=list)  # different heads of records
    names: list[str] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)  # positions in `heads`
    lengths: list[int] = field(default_factory=list)  # of the bodies, in bytes
    checks: list[int] = field(default_factory=list)  # low 16 bits of the checksums
    groups: list[int] = field(default_factory=list)  # numbers of pictures
    checksums: list[int] = field(default_factory=list)  # of the bodies of each group

    def to_bytes(self) -> bytes:
        """Serialise the index, see docs/format.md.

        Raises:
            FileFormatError: a number or a length is 2^32 or more.
        """
        parts = [varint(len(self.heads))]
        for head in self.heads:
            parts += block(head)
        parts.append(varint(len(self.names)))
        first, last, middles, before = [], [], [], b""
        for name in map(str.encode, self.names):
            first.append(shared(before, name))
            most = min(len(before), len(name)) - first[-1]
            last.append(min(most, shared(before[::-1], name[::-1])))
            middles += block(name[first[-1] : len(name) - last[-1]])
            before = name
        parts += map(varint, [*first, *last])
        parts += middles
        parts += map(varint, self.kinds)
        parts.append(bytes(length & 255 for length in self.lengths))
        parts += [varint(length >> 8) for length in self.lengths]
        parts += map(_CHECK.pack, self.checks)
        parts += map(varint, [len(self.groups), *self.groups])
        parts += map(CHECKSUM.pack, self.checksums)
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes, bodies: int) -> Index:
        """Parse and check the index of an archive.

        Args:
            data: the index.
            bodies: number of bytes of all bodies in the archive.

        Raises:
            FileFormatError: the index is damaged, or does not match the bodies.
        """
        cursor = Cursor(data, "the archive's index")
        heads = [cursor.block() for _ in range(cursor.varint())]
        count = cursor.varint()
        if count > len(data) // _SMALLEST_ENTRY:
            raise _damaged(f"it lists {count} pictures, more than fit into {len(data)} bytes")
        first, last = cursor.varints(count), cursor.varints(count)
        names = _read_names(first, last, cursor)
        kinds, low = cursor.varints(count), cursor.take(count)
        lengths = [high << 8 | byte for high, byte in zip(cursor.varints(count), low, strict=True)]
        checks = [check for (check,) in _CHECK.iter_unpack(cursor.take(_CHECK.size * count))]
        groups = cursor.varints(cursor.varint())
        rest = cursor.take(CHECKSUM.size * len(groups))
        checksums = [checksum for (checksum,) in CHECKSUM.iter_unpack(rest)]
        cursor.finish()
        if any(kind >= len(heads) for kind in kinds):
            raise _damaged("a picture has a head that is not in it")
        if sum(lengths) != bodies:
            raise _damaged(f"it lists {sum(lengths)} bytes of records, but the file has {bodies}")
        index = cls(heads, names, kinds, lengths, checks, groups, checksums)
        index._check_groups()
        return index

    def _check_groups(self) -> None:
        if sum(self.groups) != len(self.names):
            raise _damaged(f"its groups have {sum(self.groups)} of {len(self.names)} pictures")
        start = 0
        for count in self.groups:
            size = sum(self.lengths[start : start + count])
            if count == 0 or (count > 1 and size > GROUP):
                raise _damaged(f"a group has {count} pictures of {size} bytes")
            start += count


def shared(a: bytes, b: bytes) -> int:
    """Number of equal bytes at the start of both."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((place for place, (x, y) in pairs if x != y), min(len(a), len(b)))


def _damaged(reason: str) -> FileFormatError:
    return FileFormatError(f"the archive's index is damaged: {reason}")


def _read_names(first: list[int], last: list[int], cursor: Cursor) -> list[str]:
    """The names, from the bytes that each shares with the start and the end of the one before."""
    names: dict[str, None] = {}
    before, total = b"", 0
    for start, end in zip(first, last, strict=True):
        if start + end > len(before):
            raise _damaged("a name has more in common with the one before than this has bytes")
        encoded = before[:start] + cursor.block() + before[len(before) - end :]
        total += len(encoded)
        if total > MAX_INDEX:
            raise _damaged(f"its names have more than {MAX_INDEX} bytes")
        name = _decode_name(encoded)
        if name in names:
            raise _damaged(f"it has {name!r} twice")
        names[name] = None
        before = encoded
    return list(names)


def encode_name(name: str) -> bytes:
    """A checked name in UTF-8; FileFormatError if it is invalid."""
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

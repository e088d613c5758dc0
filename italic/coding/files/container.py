"""Version 3 of the file format: files of one picture, and archives with random access.

This module converts between bytes and dataclasses as specified in docs/format.md; it does not
decode pictures. Files that are damaged, malicious or of another format raise a `FileFormatError`.
Lengths are compared with the available bytes before anything is read or allocated.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import accumulate
from typing import BinaryIO, Literal, TypeVar

from italic.schedule import Schedule

MAGIC = b"\x89ITL"
END_MAGIC = MAGIC[::-1]
VERSION = 3
MAX_SIDE = 2**31 - 1  # pixels
MAX_AREA = 2**32  # pixels
DEFAULT_MAX_PIXELS = 2**28
MAX_STEPS = 2**16  # bounds the work of decoding: a short stream can have any number of steps
MAX_CHUNKS = 32
MAX_NAME = 4096  # bytes: the longest path of Linux
MAX_PARTS = 32  # of a name: otherwise a few bytes of an index could create very many folders
MAX_INDEX = 2**26  # bytes, decompressed

_OLD_MAGIC = b"ITALIC"
_HEADER = struct.Struct("<4sBB8s")
_TRAILER = struct.Struct("<QI4s")
_CHECKSUM = struct.Struct("<I")
_SMALLEST_RECORD = 10  # bytes
_INDEX_SLACK = 2**16  # bytes; zlib adds less than this to an index that it cannot make smaller

Kind = Literal["picture", "archive"]
_KINDS: tuple[Kind, ...] = ("picture", "archive")
_PLANS = ("own", "equal", "power")


class FileFormatError(ValueError):
    """A file that is not an ITALIC file or is damaged, or contents that the format can't store."""


class Method(IntEnum):
    """How the main picture is coded."""

    ESTIMATOR = 0
    RAW = 1
    PNG = 2
    WEBP = 3
    JPEG_XL = 4


class Colour(IntEnum):
    """Kind of the original picture's samples."""

    RGB = 0
    GRAY = 1
    PALETTE = 2
    GRAY_ALPHA = 3
    RGB_ALPHA = 4
    GRAY16 = 5
    RGB16 = 6
    RGBA16 = 7
    GRAY_ALPHA16 = 8
    BILEVEL = 9


class Chunk(IntEnum):
    """Types of chunks beside the main picture; other types, up to 255, can be stored too."""

    ALPHA = 1
    PALETTE = 2
    LOW_BYTES = 3  # of 16-bit samples
    ICC = 4
    EXIF = 5
    TEXT = 6  # text chunks of a PNG file
    GAMMA = 7
    OTHER = 8


_REPEATABLE = (Chunk.TEXT, Chunk.OTHER)


@dataclass(frozen=True)
class Plan:
    """The step sizes of a file, see `Schedule.sizes`.

    Attributes:
        kind: `own` for the sizes of the model; `equal`; `power`.
        exponent: exponent of `power`, 0 to 655.35 in whole hundredths, so that decoders read
            exactly the number that the encoder used; 0 for the other kinds.

    Raises:
        FileFormatError: the kind is unknown, or the exponent can't be stored.
    """

    kind: Literal["own", "equal", "power"] = "own"
    exponent: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in _PLANS:
            raise FileFormatError(f"unknown plan '{self.kind}': expected own, equal or power")
        largest = 655.35 if self.kind == "power" else 0.0
        if not 0 <= self.exponent <= largest or self.exponent != round(100 * self.exponent) / 100:
            raise FileFormatError(
                f"the plan '{self.kind}' has the exponent {self.exponent}: expected 0 to {largest} "
                "in whole hundredths"
            )

    def schedule(self, own: Schedule) -> Schedule:
        """The schedule of a file with this plan; `own` is the schedule of the model."""
        return own if self.kind == "own" else replace(own, sizes=self.kind, exponent=self.exponent)


@dataclass(frozen=True)
class Record:
    """A coded picture.

    Attributes:
        method: coding method of the main picture.
        height: height in pixels, 1 to 2^31 - 1; the picture has at most 2^32 pixels.
        width: width in pixels, 1 to 2^31 - 1.
        checksum: CRC-32 of the main picture's samples, uint8, row by row, red green blue.
        colour: kind of the original picture's samples.
        chunks: types (0 to 255) and contents of the chunks, in the order of the file, at most 32;
            only TEXT and OTHER may occur several times.
        steps: number of steps of the estimator, 1 to the number of pixels, at most 2^16; 0 for the
            other methods.
        plan: step sizes of the estimator; `Plan()` for the other methods.
        base: base code of the estimator; empty for the other methods.
        stream: stream of the estimator, or data of the classical codec.

    Raises:
        FileFormatError: a value can't be stored in the format.
    """

    method: Method
    height: int
    width: int
    checksum: int
    colour: Colour
    chunks: tuple[tuple[int, bytes], ...] = ()
    steps: int = 0
    plan: Plan = Plan()
    base: bytes = b""
    stream: bytes = b""

    def __post_init__(self) -> None:
        _member(Method, self.method)
        _member(Colour, self.colour)
        _check_size(self.height, self.width, MAX_AREA)
        if not 0 <= self.checksum < 2**32:
            raise FileFormatError(f"the checksum is {self.checksum}: expected 0 to 2^32 - 1")
        self._check_chunks()
        if self.method == Method.ESTIMATOR:
            most = min(self.height * self.width, MAX_STEPS)
            if not 1 <= self.steps <= most:
                raise FileFormatError(
                    f"the record has {self.steps} steps: expected 1 to {most}, which is the number "
                    f"of pixels or {MAX_STEPS}"
                )
        elif self.steps or self.base or self.plan != Plan():
            raise FileFormatError(
                f"the record has steps, a plan or a base code, but its method is {self.method}: "
                "only the estimator, method 0, has these"
            )

    def _check_chunks(self) -> None:
        if len(self.chunks) > MAX_CHUNKS:
            raise FileFormatError(
                f"the record has {len(self.chunks)} chunks: expected at most {MAX_CHUNKS}"
            )
        seen = set()
        for kind, _ in self.chunks:
            if not 0 <= kind <= 255:
                raise FileFormatError(f"the record has a chunk of type {kind}: expected 0 to 255")
            if kind in seen and kind not in _REPEATABLE:
                raise FileFormatError(
                    f"the record has several chunks of type {kind}: expected one at most"
                )
            seen.add(kind)

    def to_bytes(self) -> bytes:
        """Serialise the record, without the CRC-32 that follows it in files.

        Raises:
            FileFormatError: a number or a length is 2^32 or more.
        """
        parts = [
            bytes([self.method]),
            _varint(self.height),
            _varint(self.width),
            _CHECKSUM.pack(self.checksum),
            bytes([self.colour]),
            _varint(len(self.chunks)),
        ]
        for kind, content in self.chunks:
            parts += [bytes([kind]), *_block(content)]
        if self.method == Method.ESTIMATOR:
            parts += [_varint(self.steps), bytes([_PLANS.index(self.plan.kind)])]
            if self.plan.kind == "power":
                parts.append(round(100 * self.plan.exponent).to_bytes(2, "little"))
            parts += _block(self.base)
        return b"".join(parts + _block(self.stream))

    @classmethod
    def from_bytes(cls, data: bytes | memoryview, max_pixels: int = DEFAULT_MAX_PIXELS) -> Record:
        """Parse a record that fills `data`.

        Args:
            data: the record, without the CRC-32 that follows it in files.
            max_pixels: maximum number of pixels; larger pictures are refused.

        Raises:
            FileFormatError: the record is damaged, or its picture is too large.
        """
        cursor = _Cursor(data, "the record")
        method = _member(Method, cursor.unsigned(1))
        height, width = cursor.varint(), cursor.varint()
        _check_size(height, width, max_pixels)
        checksum = cursor.unsigned(4)
        colour = _member(Colour, cursor.unsigned(1))
        count = cursor.varint()
        if count > MAX_CHUNKS:
            raise FileFormatError(f"the record has {count} chunks: expected at most {MAX_CHUNKS}")
        chunks = tuple((cursor.unsigned(1), cursor.block()) for _ in range(count))
        steps, plan, base = 0, Plan(), b""
        if method == Method.ESTIMATOR:
            steps, plan, base = cursor.varint(), _read_plan(cursor), cursor.block()
        stream = cursor.block()
        cursor.finish()
        return cls(method, height, width, checksum, colour, chunks, steps, plan, base, stream)


def kind_of(data: bytes) -> Kind:
    """Tell whether a file holds one picture or is an archive.

    Args:
        data: the file, or its first 6 bytes.

    Raises:
        FileFormatError: it is not an ITALIC file, or has another version.
    """
    old = 1 if data[:6] == _OLD_MAGIC else 2 if data[:5] == MAGIC + b"\2" else None
    if old is not None:
        raise FileFormatError(
            f"the file has format version {old} of an earlier ITALIC, but expected version "
            f"{VERSION}: decode it with the program that wrote it and compress it again"
        )
    if data[:4] != MAGIC:
        raise FileFormatError(
            f"not an ITALIC file: it begins with {bytes(data[:4])!r}, expected {MAGIC!r}"
        )
    if len(data) < 6:
        raise FileFormatError(f"the file is truncated: it ends after {len(data)} bytes")
    version, kind = data[4:6]
    if version > VERSION:
        raise FileFormatError(
            f"the file has format version {version} of a newer ITALIC, but expected version "
            f"{VERSION}: update ITALIC"
        )
    if version < VERSION or kind >= len(_KINDS):
        raise FileFormatError(
            f"the file is damaged: it has version {version} and kind {kind}, expected version "
            f"{VERSION} and kind 0 or 1"
        )
    return _KINDS[kind]


def pack(model_hash: bytes, record: Record) -> bytes:
    """Build the file of one picture.

    Args:
        model_hash: the first 8 bytes of the model's SHA-256; zeros if the method needs no model.
        record: the picture.

    Raises:
        FileFormatError: the hash has another length, or a part has 2^32 bytes or more.
    """
    body = _header("picture", model_hash) + record.to_bytes()
    return body + _CHECKSUM.pack(zlib.crc32(body))


def unpack(data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS) -> tuple[bytes, Record]:
    """Parse a file of one picture: return the model's hash and the record.

    Args:
        data: the whole file.
        max_pixels: maximum number of pixels; larger pictures are refused.

    Raises:
        FileFormatError: it is not a file of one picture, is damaged, or its picture is too large.
    """
    model_hash = _read_header(data, "picture")
    smallest = _HEADER.size + _SMALLEST_RECORD + _CHECKSUM.size
    if len(data) < smallest:
        raise FileFormatError(
            f"the file is truncated: it has {len(data)} bytes, expected at least {smallest}"
        )
    body = _checked("the file", memoryview(data))
    return model_hash, Record.from_bytes(body[_HEADER.size :], max_pixels)


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
        self._header = _header("archive", model_hash)
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
        entry = b"".join([*_block(encoded), _varint(len(data))])
        if len(_varint(len(self._names) + 1)) + len(self._entries) + len(entry) > MAX_INDEX:
            raise FileFormatError(
                f"the archive is full: with {len(self._names)} pictures its index has the "
                f"{MAX_INDEX >> 20} MiB that the format allows; write another archive"
            )
        self._file.write(data)
        self._file.write(_CHECKSUM.pack(zlib.crc32(data)))
        self._names.add(name)
        self._entries += entry

    def finish(self) -> None:
        """Write the index; an archive without it can't be read."""
        self._check_open()
        index = zlib.compress(_varint(len(self._names)) + self._entries, 9)
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
        header = self._read(0, min(size, _HEADER.size))
        self.model_hash = _read_header(header, "archive")
        if size < _HEADER.size + _TRAILER.size:
            raise FileFormatError(
                f"the archive is truncated: it has {size} bytes, expected more than "
                f"{_HEADER.size + _TRAILER.size}"
            )
        length, checksum, magic = _TRAILER.unpack(self._read(size - _TRAILER.size, _TRAILER.size))
        if magic != END_MAGIC:
            raise FileFormatError(
                f"the archive is truncated or was not finished: its last bytes are {magic!r}, "
                f"expected {END_MAGIC!r}"
            )
        records = size - _HEADER.size - _TRAILER.size - length  # bytes of all records and CRCs
        if records < 0 or length > MAX_INDEX + _INDEX_SLACK:
            raise FileFormatError(
                f"the archive is damaged: its index of {length} bytes is longer than the file or "
                "the format allows"
            )
        index = self._read(_HEADER.size + records, length)
        _check_crc("the archive's index", zlib.crc32(index, zlib.crc32(header)), checksum)
        entries = _read_index(_decompress(index), records)
        self.names = tuple(entries)
        self.sizes = tuple(entries.values())
        self._places = dict(zip(entries, range(len(entries)), strict=True))
        steps = (size + _CHECKSUM.size for size in self.sizes)
        self._offsets = tuple(accumulate(steps, initial=_HEADER.size))

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
        data = self._read(self._offsets[place], self.sizes[place] + _CHECKSUM.size)
        try:
            return Record.from_bytes(_checked("its record", memoryview(data)), self._max_pixels)
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


class _Cursor:
    """Sequential parser of a part of a file.

    Args:
        data: the part.
        what: name of the part in error messages.
    """

    def __init__(self, data: bytes | memoryview, what: str) -> None:
        self._data, self._what, self._position = memoryview(data), what, 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        end = self._position + count
        if end > len(self._data):
            raise FileFormatError(
                f"{self._what} is damaged: it has {len(self._data)} bytes, expected {end} or more"
            )
        taken = bytes(self._data[self._position : end])
        self._position = end
        return taken

    def unsigned(self, count: int) -> int:
        """An unsigned little-endian integer of `count` bytes."""
        return int.from_bytes(self.take(count), "little")

    def varint(self) -> int:
        """An integer below 2^32, of 1 to 5 bytes."""
        value = 0
        for shift in range(0, 35, 7):
            byte = self.unsigned(1)
            value |= (byte & 127) << shift
            if byte < 128:
                if (byte == 0 and shift > 0) or value >= 2**32:
                    break
                return value
        raise FileFormatError(
            f"{self._what} is damaged: it has a number of 2^32 or more, or not in its shortest form"
        )

    def block(self) -> bytes:
        """Bytes that are preceded by their length."""
        return self.take(self.varint())

    def finish(self) -> None:
        """Check that no bytes are left."""
        left = len(self._data) - self._position
        if left:
            raise FileFormatError(f"{self._what} is damaged: {left} bytes follow its end")


def _varint(value: int) -> bytes:
    if value >= 2**32:
        raise FileFormatError(
            f"{value} can't be stored: expected numbers and lengths in bytes below 2^32"
        )
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _block(data: bytes) -> list[bytes]:
    return [_varint(len(data)), data]


def _header(kind: Kind, model_hash: bytes) -> bytes:
    if len(model_hash) != 8:
        raise FileFormatError(f"the model's hash has {len(model_hash)} bytes: expected 8")
    return _HEADER.pack(MAGIC, VERSION, _KINDS.index(kind), model_hash)


def _read_header(data: bytes, kind: Kind) -> bytes:
    """Check the header of a file and return the model's hash."""
    found = kind_of(data)
    if found != kind:
        contents, reader = {
            "picture": ("one picture", "unpack"),
            "archive": ("an archive of pictures", "ArchiveReader"),
        }[found]
        raise FileFormatError(f"the file holds {contents}: read it with {reader}")
    if len(data) < _HEADER.size:
        raise FileFormatError(f"the file is truncated: it ends after {len(data)} bytes")
    return bytes(data[_HEADER.size - 8 : _HEADER.size])


def _read_plan(cursor: _Cursor) -> Plan:
    code = cursor.unsigned(1)
    if code == 0:
        return Plan("own")
    if code == 1:
        return Plan("equal")
    if code == 2:
        return Plan("power", cursor.unsigned(2) / 100)
    raise FileFormatError(f"the record has plan {code}: expected 0 to 2")


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
    cursor = _Cursor(data, "the archive's index")
    count = cursor.varint()
    if count > records // (_SMALLEST_RECORD + _CHECKSUM.size):
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
    total = sum(entries.values()) + _CHECKSUM.size * count
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


def _check_size(height: int, width: int, max_pixels: int) -> None:
    pixels = height * width
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE) or pixels > MAX_AREA:
        raise FileFormatError(
            f"the picture has {height} × {width} pixels: expected sides of 1 to 2^31 - 1 and at "
            "most 2^32 pixels"
        )
    if pixels > max_pixels:
        raise FileFormatError(
            f"the picture has {height} × {width} = {pixels} pixels, more than the limit of "
            f"{max_pixels}: if you trust the file, raise max_pixels"
        )


def _checked(what: str, data: memoryview) -> memoryview:
    """Check the CRC-32 at the end of the data and return the bytes before it."""
    body, (checksum,) = data[: -_CHECKSUM.size], _CHECKSUM.unpack(data[-_CHECKSUM.size :])
    _check_crc(what, zlib.crc32(body), checksum)
    return body


def _check_crc(what: str, found: int, expected: int) -> None:
    if found != expected:
        raise FileFormatError(
            f"{what} is damaged: its CRC-32 is {found:08x}, expected {expected:08x}"
        )


E = TypeVar("E", bound=IntEnum)


def _member(kind: type[E], value: int) -> E:
    try:
        return kind(value)
    except ValueError:
        raise FileFormatError(
            f"the record has {kind.__name__.lower()} {value}: expected 0 to {max(kind):d}"
        ) from None

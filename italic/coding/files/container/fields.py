"""The fields of a file: numbers, blocks of bytes and checksums; parsed from untrusted bytes."""

from __future__ import annotations

import struct
import zlib

CHECKSUM = struct.Struct("<I")


class FileFormatError(ValueError):
    """A file that is not an ITALIC file or is damaged, or contents that the format can't store."""


class Cursor:
    """Sequential parser of a part of a file.

    Its methods raise a FileFormatError if the part is too short, holds a malformed number, or does
    not end where it should.

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

    def rest(self) -> bytes:
        """All bytes that are left."""
        return self.take(len(self._data) - self._position)

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

    def varints(self, count: int) -> list[int]:
        """Integers below 2^32, of 1 to 5 bytes each."""
        if count > len(self._data) - self._position:  # before a list of this length is made
            raise FileFormatError(
                f"{self._what} is damaged: it has fewer than {count} numbers left"
            )
        return [self.varint() for _ in range(count)]

    def block(self) -> bytes:
        """Bytes that are preceded by their length."""
        return self.take(self.varint())

    def finish(self) -> None:
        """Check that no bytes are left."""
        left = len(self._data) - self._position
        if left:
            raise FileFormatError(f"{self._what} is damaged: {left} bytes follow its end")


def varint(value: int) -> bytes:
    """Encode a number below 2^32 in 1 to 5 bytes; FileFormatError for other numbers."""
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


def block(data: bytes) -> list[bytes]:
    """Precede bytes by their length; FileFormatError if they are 2^32 or more."""
    return [varint(len(data)), data]


def inflate(data: bytes, limit: int) -> bytes:
    """Decompress a zlib stream that fills the data exactly, to at most `limit` bytes.

    Raises:
        ValueError: that is not so; the message is the predicate of a sentence about the stream.
    """
    decompressor = zlib.decompressobj()
    try:
        # One byte more than the limit: zlib treats 0 as no limit, and detects the end of its data
        # only if there is room for more output.
        raw = decompressor.decompress(data, limit + 1)
    except zlib.error as error:
        raise ValueError(f"can't be decompressed ({error})") from None
    if len(raw) > limit:
        raise ValueError(f"decompresses to more than {limit} bytes")
    if not decompressor.eof or decompressor.unused_data:
        raise ValueError("is longer or shorter than its compressed data")
    return raw


def checked(what: str, data: memoryview) -> memoryview:
    """Check the CRC-32 at the end of the data and return the bytes before it.

    Raises:
        FileFormatError: it is wrong.
    """
    body, (checksum,) = data[: -CHECKSUM.size], CHECKSUM.unpack(data[-CHECKSUM.size :])
    check_crc(what, zlib.crc32(body), checksum)
    return body


def check_crc(what: str, found: int, expected: int) -> None:
    """Compare two values of a CRC-32; FileFormatError if they differ."""
    if found != expected:
        raise FileFormatError(
            f"{what} is damaged: its CRC-32 is {found:08x}, expected {expected:08x}"
        )

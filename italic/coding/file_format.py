"""An image in one .italic file: header, base code, stream.

Version 1, little-endian: magic `ITALIC`, version u8, steps u32, height u16, width u16, CRC-32 of
the pixels (row by row, red green blue) u32, length of the base code u32, base code, stream to the
end. The network, base code and masks are those of the run that wrote the file.
"""

from __future__ import annotations

import os
import struct
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from italic.coding.codec import Coded

MAGIC = b"ITALIC"
VERSION = 1
HEADER = struct.Struct("<6sBIHHII")


class FileFormatError(ValueError):
    """A file that is no .italic file, or a damaged one."""


@dataclass(frozen=True)
class ItalicFile:
    """What a file holds: sizes in pixels, the CRC-32 of the pixels, the coded image."""

    steps: int
    height: int
    width: int
    checksum: int
    coded: Coded

    @classmethod
    def of(cls, image: np.ndarray, steps: int, coded: Coded) -> ItalicFile:
        """The file of an image, uint8 (H, W, 3), and its coded form."""
        height, width = image.shape[:2]
        return cls(steps, height, width, _checksum(image), coded)

    def to_bytes(self) -> bytes:
        """The whole file."""
        head = HEADER.pack(
            MAGIC,
            VERSION,
            self.steps,
            self.height,
            self.width,
            self.checksum,
            len(self.coded.base),
        )
        return head + self.coded.base + self.coded.stream

    @classmethod
    def from_bytes(cls, data: bytes) -> ItalicFile:
        """Read a whole file.

        Raises:
            FileFormatError: not an .italic file, another version, cut short, or absurd sizes.
        """
        if len(data) < HEADER.size or not data.startswith(MAGIC):
            raise FileFormatError("not an .italic file: it does not begin with an ITALIC header")
        _, version, steps, height, width, checksum, base_length = HEADER.unpack_from(data)
        if version != VERSION:
            raise FileFormatError(
                f"the file has format version {version}; this program reads version {VERSION}"
            )
        body = data[HEADER.size :]
        if not 1 <= steps <= height * width or base_length > len(body):
            raise FileFormatError("the .italic file is damaged: its header contradicts itself")
        return cls(steps, height, width, checksum, Coded(body[:base_length], body[base_length:]))

    def check(self, image: np.ndarray) -> None:
        """Compare a decoded image with the checksum.

        Raises:
            FileFormatError: they differ.
        """
        if _checksum(image) != self.checksum:
            raise FileFormatError(
                "the decoded picture is not the one that was coded: the file is damaged, or was "
                "written by another network, machine or configuration"
            )


def _checksum(image: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(image).data)


def write_whole(path: Path, data: bytes) -> None:
    """Write under a temporary name beside it, then rename: the file appears whole or not at all."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise

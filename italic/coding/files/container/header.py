"""The header of all files: signature, version, kind of file, and the hash of the model."""

from __future__ import annotations

import struct
from typing import Literal

from italic.coding.files.container.fields import FileFormatError

MAGIC = b"\x89ITL"
VERSION = 3  # of files of one picture
ARCHIVE_VERSION = 4
HEADER = struct.Struct("<4sBB8s")
Kind = Literal["picture", "archive"]
_KINDS: tuple[Kind, ...] = ("picture", "archive")
_VERSIONS = (VERSION, ARCHIVE_VERSION)  # by kind


def kind_of(data: bytes) -> Kind:
    """Tell whether a file holds one picture or is an archive.

    Args:
        data: the file, or its first 6 bytes.

    Raises:
        FileFormatError: it is not an ITALIC file, or has another version.
    """
    if data[:4] != MAGIC:
        raise FileFormatError(
            f"not an ITALIC file: it begins with {bytes(data[:4])!r}, expected {MAGIC!r}"
        )
    if len(data) < 6:
        raise FileFormatError(f"the file is truncated: it ends after {len(data)} bytes")
    version, kind = data[4:6]
    expected = _VERSIONS[min(kind, 1)]
    if version > max(_VERSIONS):
        raise FileFormatError(
            f"the file has format version {version} of a newer ITALIC, but expected version "
            f"{expected}: update ITALIC"
        )
    if version != expected or kind >= len(_KINDS):
        raise FileFormatError(
            f"the file is damaged: it has version {version} and kind {kind}, expected version "
            f"{VERSION} and kind 0, or version {ARCHIVE_VERSION} and kind 1"
        )
    return _KINDS[kind]


def file_header(kind: Kind, model_hash: bytes) -> bytes:
    """Build the header; FileFormatError if the model's hash does not have 8 bytes."""
    if len(model_hash) != 8:
        raise FileFormatError(f"the model's hash has {len(model_hash)} bytes: expected 8")
    number = _KINDS.index(kind)
    return HEADER.pack(MAGIC, _VERSIONS[number], number, model_hash)


def read_header(data: bytes, kind: Kind) -> bytes:
    """Check the header of a file and return the model's hash.

    Raises:
        FileFormatError: it is not an ITALIC file of this kind, has another version, or is
            truncated.
    """
    found = kind_of(data)
    if found != kind:
        contents, reader = {
            "picture": ("one picture", "unpack"),
            "archive": ("an archive of pictures", "ArchiveReader"),
        }[found]
        raise FileFormatError(f"the file holds {contents}: read it with {reader}")
    if len(data) < HEADER.size:
        raise FileFormatError(f"the file is truncated: it ends after {len(data)} bytes")
    return bytes(data[HEADER.size - 8 : HEADER.size])

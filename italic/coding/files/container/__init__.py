"""The file format: files of one picture (version 3), archives with random access (version 4).

This package converts between bytes and dataclasses as specified in docs/format.md; it does not
decode pictures. Files that are damaged, malicious or of another format raise a `FileFormatError`.
Lengths are compared with the available bytes before anything is read or allocated.
"""

from italic.coding.files.container.archive_file import END_MAGIC, ArchiveReader, ArchiveWriter
from italic.coding.files.container.fields import FileFormatError, inflate
from italic.coding.files.container.header import MAGIC, VERSION, kind_of
from italic.coding.files.container.parts import Box, Grid, PartCodes
from italic.coding.files.container.record import (
    DEFAULT_MAX_PIXELS,
    ESTIMATOR_METHODS,
    JPEG_METHODS,
    MAX_AREA,
    MAX_EXPONENT,
    MAX_STEPS,
    REPEATABLE,
    Chunk,
    Colour,
    Method,
    Plan,
    Record,
)
from italic.coding.files.container.single import holds_jpeg, pack, unpack

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "END_MAGIC",
    "ESTIMATOR_METHODS",
    "JPEG_METHODS",
    "MAGIC",
    "MAX_AREA",
    "MAX_EXPONENT",
    "MAX_STEPS",
    "REPEATABLE",
    "VERSION",
    "ArchiveReader",
    "ArchiveWriter",
    "Box",
    "Chunk",
    "Colour",
    "FileFormatError",
    "Grid",
    "Method",
    "PartCodes",
    "Plan",
    "Record",
    "holds_jpeg",
    "inflate",
    "kind_of",
    "pack",
    "unpack",
]

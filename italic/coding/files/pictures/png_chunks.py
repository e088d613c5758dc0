"""PNG files as sequences of chunks: the kinds of chunks, parsing and writing."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain

from italic.coding.files.container import Chunk
from italic.coding.files.pictures.errors import MetadataError, PictureError, damaged

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
# PNG chunks that are stored unchanged. All of them may precede the palette in a written file.
STORED = {
    Chunk.COLOUR_SPACE: (b"gAMA", b"cHRM", b"sRGB", b"cICP", b"mDCV", b"cLLI", b"sBIT"),
    Chunk.TEXT: (b"tEXt", b"zTXt", b"iTXt"),
    Chunk.PIXEL_SIZE: (b"pHYs",),
}
SINGLE = (
    b"IHDR",
    b"PLTE",
    b"tRNS",
    b"iCCP",
    b"eXIf",
    *STORED[Chunk.COLOUR_SPACE],
    *STORED[Chunk.PIXEL_SIZE],
)
# Chunks that apply to the samples after them; decoders ignore them after the samples.
BEFORE_SAMPLES = (b"PLTE", b"tRNS", b"iCCP", *STORED[Chunk.COLOUR_SPACE], *STORED[Chunk.PIXEL_SIZE])
# Chunks that do not affect the samples.
METADATA = (b"iCCP", b"eXIf", b"bKGD", b"hIST", b"sPLT", b"tIME", *chain(*STORED.values()))


def png_chunks(data: bytes, keep_metadata: bool = True) -> Iterator[tuple[bytes, bytes]]:
    """Types and bodies of a PNG file's chunks, up to IEND.

    If metadata are not kept, metadata chunks with a wrong checksum or in a wrong place are left
    out.

    Raises:
        PictureError: a chunk is damaged or in a wrong place, IEND is missing, or a second PNG file
            follows it.
    """
    position, samples = len(PNG_SIGNATURE), False
    while position + 12 <= len(data):
        length, name = unpack_head(data, position)
        end = position + 12 + length
        if end > len(data):
            break
        body = data[position + 8 : end - 4]
        position = end
        if zlib.crc32(body, zlib.crc32(name)) != int.from_bytes(data[end - 4 : end], "big"):
            if name in METADATA and not keep_metadata:
                continue
            raise damaged_chunk(name, f"its {chunk_name(name)} chunk does not match its checksum")
        if samples and name in BEFORE_SAMPLES:
            if name in METADATA and not keep_metadata:
                continue
            raise damaged_chunk(name, f"its {chunk_name(name)} chunk follows the samples")
        samples |= name == b"IDAT"
        yield name, body
        if name == b"IEND":
            if data.startswith(PNG_SIGNATURE, end):
                raise PictureError("the file holds several pictures: expected a single one")
            return
    raise damaged("it is truncated")


def png_file(chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Build a PNG file from types and bodies of all its chunks."""
    parts = [PNG_SIGNATURE]
    for name, body in chunks:
        checksum = zlib.crc32(body, zlib.crc32(name))
        parts += [struct.pack(">I4s", len(body), name), body, struct.pack(">I", checksum)]
    return b"".join(parts)


def serialised(chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Lengths, types and bodies of chunks, as in a PNG file but without checksums."""
    return b"".join(struct.pack(">I4s", len(body), name) + body for name, body in chunks)


def unpack_head(data: bytes, position: int) -> tuple[int, bytes]:
    """Length and type of a PNG chunk; missing bytes are read as zeros."""
    length, name = struct.unpack(">I4s", data[position : position + 8].ljust(8, b"\0"))
    return length, name


def damaged_chunk(name: bytes, reason: str) -> PictureError:
    """An error of a damaged PNG chunk, to be raised."""
    return damaged(reason, MetadataError if name in METADATA else PictureError)


def chunk_name(kind: bytes) -> str:
    """A printable form of a chunk's type."""
    return repr(kind)[2:-1]

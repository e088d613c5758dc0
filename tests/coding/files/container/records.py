"""Records for tests of the file format, and files that hold them."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st

from italic.coding.files import container
from italic.coding.files.container import (
    ESTIMATOR_METHODS,
    JPEG_METHODS,
    MAX_STEPS,
    REPEATABLE,
    ArchiveReader,
    ArchiveWriter,
    Chunk,
    Colour,
    Method,
    Plan,
    Record,
)

HASH = b"modelsha"
CHUNKS = ((Chunk.PALETTE, b"abc"), (Chunk.TEXT, b"t"), (Chunk.TEXT, b""))
ESTIMATED = Record(
    *(Method.ESTIMATOR, 2, 300, 0x12345678, Colour.PALETTE, CHUNKS),
    *(4, Plan("power", 2.2), b"base", b"stream"),
)
DIVIDED = Record(
    *(Method.ESTIMATOR_PARTS, 2, 300, 0x12345678, Colour.GREY, (), 4, Plan("power", 2.2)),
    stream=b"parts",
    part=512,
)
KEPT = Record(Method.PNG, 1, 1, 5, Colour.BILEVEL, stream=b"png")


def in_archive(record: Record) -> Record:
    """The record as an archive holds it, with a short checksum."""
    return replace(record, checksum=record.checksum & 0xFFFF, short=True)


ESTIMATED_HEX = (
    "00 02 ac02 78563412 02 03 02 03 616263 06 01 74 06 00"  # size, CRC, colour, chunks
    "04 02 dc00 04 62617365 06 73747265616d"  # steps, plan, base code, stream
)
CRC = "05000000"  # in hexadecimal digits, of any picture
PICTURE = bytes.fromhex("8949544c 03 00 6d6f64656c736861" + ESTIMATED_HEX + "ff307564")
ARCHIVE_INDEX = bytes.fromhex(
    "02 0e 00 02 ac02 02 03 02 06 06 04 02 dc00 01 05 02 01 01 09 00"  # heads
    "02 00 00 00 04 05 612e706e67 06 7375622fc3bc"  # names: shared with the start, the end; rest
    "00 01 12 03 00 00 7856 0500"  # heads, lengths (low bytes, the rest), checks
    "01 02 8e9ebaa9"  # one group
)
BODIES = bytes.fromhex("03 616263 01 74 00 04 62617365 73747265616d" + "706e67")
ARCHIVE = bytes.fromhex("8949544c 04 01 0000000000000000") + BODIES
ARCHIVE += bytes.fromhex(
    "78da63e263605ac3c4c4ccc4c6c6c27487819195899191938189818181853551af202f9dadb83449fff01e06"
    "46216606868a30560646a6be79bb560200ccf10a21"
    "4100000000000000 09c35557 4c544989"
)
quick = settings(derandomize=True, max_examples=100)
contents = st.binary(max_size=40)
sides, checksums = st.integers(1, 2**31 - 1), st.integers(0, 2**32 - 1)


@st.composite
def records(draw: st.DrawFn) -> Record:
    method = draw(st.sampled_from(Method))
    height = draw(sides)
    width = draw(st.integers(1, min(2**31 - 1, 2**32 // height)))
    if method in JPEG_METHODS:
        colour = draw(st.sampled_from([Colour.RGB, Colour.GREY]))
        return Record(method, height, width, draw(checksums), colour, stream=draw(contents))
    single = st.integers(0, 255).filter(lambda kind: kind not in REPEATABLE)
    chunks = draw(st.lists(st.tuples(single, contents), max_size=8, unique_by=lambda c: c[0]))
    chunks += draw(st.lists(st.tuples(st.sampled_from(REPEATABLE), contents)))[:24]
    colour, checksum = draw(st.sampled_from(Colour)), draw(checksums)
    record = (method, height, width, checksum, colour, tuple(draw(st.permutations(chunks))))
    if method not in ESTIMATOR_METHODS:
        return Record(*record, stream=draw(contents))
    steps = draw(st.integers(1, min(height * width, MAX_STEPS)))
    powers = st.integers(0, 65535).map(lambda exponent: Plan("power", exponent / 100))
    plan = draw(st.one_of(st.sampled_from([Plan("own"), Plan("equal")]), powers))
    if method == Method.ESTIMATOR_PARTS:
        return Record(*record, steps, plan, stream=draw(contents), part=draw(sides))
    return Record(*record, steps, plan, draw(contents), draw(contents))


names = st.lists(
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1).filter(
        lambda part: part not in (".", "..")
    ),
    min_size=1,
    max_size=3,
).map("/".join)


def archive(pictures: dict[str, Record], model_hash: bytes = HASH) -> bytes:
    file = io.BytesIO()
    writer = ArchiveWriter(file, model_hash)
    for name, record in pictures.items():
        writer.add(name, record)
    writer.finish()
    return file.getvalue()


def with_index(compressed: bytes, body: bytes = b"") -> bytes:
    """An archive with correct checksums and any index."""
    header = container.MAGIC + b"\4\1" + HASH
    checksum = zlib.crc32(header + compressed)
    return header + body + compressed + struct.pack("<QI4s", len(compressed), checksum, b"LTI\x89")


def sealed(body: bytes) -> bytes:
    """A file of one picture with a correct checksum and any record."""
    data = container.MAGIC + b"\3\0" + HASH + body
    return data + struct.pack("<I", zlib.crc32(data))


def read_all(data: bytes) -> list[Record]:
    reader = ArchiveReader(io.BytesIO(data))
    return [reader.read(name) for name in reader.names]

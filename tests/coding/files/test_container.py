from __future__ import annotations

import io
import random
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
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
    FileFormatError,
    Method,
    Plan,
    Record,
    archive_index,
    kind_of,
    pack,
    unpack,
)

HASH = b"modelsha"
CHUNKS = ((Chunk.PALETTE, b"abc"), (Chunk.TEXT, b"t"), (Chunk.TEXT, b""))
ESTIMATED = Record(
    *(Method.ESTIMATOR, 2, 300, 0x12345678, Colour.PALETTE, CHUNKS),
    *(4, Plan("power", 2.2), b"base", b"stream"),
)
KEPT = Record(Method.PNG, 1, 1, 5, Colour.BILEVEL, stream=b"png")


def in_archive(record: Record) -> Record:
    """The record as an archive holds it, with a short checksum."""
    return replace(record, checksum=record.checksum & 0xFFFF, short=True)


ESTIMATED_HEX = (
    "00 02 ac02 78563412 02 03 02 03 616263 06 01 74 06 00"  # size, CRC, colour, chunks
    "04 02 dc00 04 62617365 06 73747265616d"  # steps, plan, base code, stream
)
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

quick = settings(derandomize=True, deadline=None, max_examples=100)
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


def test_golden_picture() -> None:
    assert pack(HASH, ESTIMATED) == PICTURE
    assert unpack(PICTURE) == (HASH, ESTIMATED)


def test_golden_archive() -> None:
    pictures = {"a.png": ESTIMATED, "sub/ü.png": KEPT}
    assert read_all(ARCHIVE) == [in_archive(record) for record in pictures.values()]
    assert ArchiveReader(io.BytesIO(ARCHIVE)).names == tuple(pictures)
    written = archive(pictures, bytes(8))
    # Another build of zlib may compress the index differently.
    start = 14 + len(BODIES)
    assert written[:start] == ARCHIVE[:start]
    assert zlib.decompress(written[start:-16]) == ARCHIVE_INDEX


@quick
@given(st.binary(min_size=8, max_size=8), records())
def test_pictures_come_back(model_hash: bytes, record: Record) -> None:
    data = pack(model_hash, record)
    assert kind_of(data) == kind_of(data[:6]) == "picture"
    assert unpack(data, max_pixels=2**32) == (model_hash, record)


@quick
@given(st.binary(min_size=8, max_size=8), st.dictionaries(names, records(), max_size=4))
def test_archives_come_back(model_hash: bytes, pictures: dict[str, Record]) -> None:
    data = archive(pictures, model_hash)
    assert kind_of(data) == kind_of(data[:6]) == "archive"
    reader = ArchiveReader(io.BytesIO(data), max_pixels=2**32)
    assert (reader.model_hash, reader.names, len(reader)) == (
        model_hash,
        tuple(pictures),
        len(pictures),
    )
    assert reader.sizes == tuple(len(record.parts()[1]) for record in pictures.values())
    for place in reversed(range(len(pictures))):
        record = in_archive(pictures[reader.names[place]])
        assert reader.read(place) == reader.read(reader.names[place]) == record
        assert reader.read(place - len(pictures)) == record


@pytest.mark.parametrize("whole, read", [(PICTURE, unpack), (ARCHIVE, read_all)])
def test_every_cut_and_every_changed_byte_is_refused(
    whole: bytes, read: Callable[[bytes], object]
) -> None:
    read(whole)
    for position in range(len(whole)):
        with pytest.raises(FileFormatError):
            read(whole[:position])
        for change in (0x01, 0x80, 0xFF):
            damaged = bytearray(whole)
            damaged[position] ^= change
            with pytest.raises(FileFormatError):
                read(bytes(damaged))
    with pytest.raises(FileFormatError):
        read(whole + b"\0")


def test_damage_of_a_record_affects_its_group_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_index, "GROUP", 6)
    data = archive({f"{place}.png": KEPT for place in range(5)} | {"e.png": ESTIMATED})
    reader = ArchiveReader(io.BytesIO(data))
    assert reader.index.groups == [2, 2, 1, 1]  # of 3, 3 and 3, 3 and 3 and 18 bytes
    damaged = bytearray(data)
    damaged[14] ^= 1
    reader = ArchiveReader(io.BytesIO(damaged))
    message = r"picture '1.png': its record or a neighbour is damaged: its CRC-32"
    with pytest.raises(FileFormatError, match=message):
        reader.read("1.png")
    assert [reader.read(place) for place in range(2, 5)] == 3 * [in_archive(KEPT)]
    alone = bytearray(archive({"e.png": ESTIMATED}))
    alone[14] ^= 1
    with pytest.raises(FileFormatError, match=r"'e.png': its record is damaged: its CRC-32"):
        ArchiveReader(io.BytesIO(alone)).read(0)


def test_the_checksums_of_an_archive_have_16_bits() -> None:
    record = ArchiveReader(io.BytesIO(ARCHIVE)).read(0)
    assert record.checksum == 0x5678 and record.short
    assert record.agrees(0x12345678) and record.agrees(0x5678) and not record.agrees(0x12345679)
    assert ESTIMATED.agrees(0x12345678) and not ESTIMATED.agrees(0x5678)
    with pytest.raises(FileFormatError, match="short checksum"):
        pack(HASH, record)


def test_small_pictures_cost_few_bytes() -> None:
    """Beside the streams less than 4 bytes each: lengths of which 8 bits are random, and names."""
    rng = random.Random(0)
    count, streams = 1000, 0
    pictures = {}
    for place in range(count):
        stream = rng.randbytes(1200 + rng.randrange(256))
        streams += len(stream)
        pictures[f"train/{place:05}.png"] = Record(
            *(Method.ESTIMATOR, 32, 32, rng.randrange(2**32), Colour.RGB), steps=16, stream=stream
        )
    assert len(archive(pictures)) - streams < 4 * count


def test_copying_an_archive_and_adding_to_it() -> None:
    old = ArchiveReader(io.BytesIO(ARCHIVE))
    file = io.BytesIO()
    writer = ArchiveWriter(file, HASH)
    writer.add("first.png", KEPT)
    writer.copy(old)
    writer.add("last.png", ESTIMATED)
    with pytest.raises(FileFormatError, match=r"already holds a picture 'a\.png'"):
        writer.add("a.png", KEPT)
    writer.finish()
    reader = ArchiveReader(io.BytesIO(file.getvalue()))
    assert reader.names == ("first.png", "a.png", "sub/ü.png", "last.png")
    expected = [in_archive(record) for record in (KEPT, ESTIMATED, KEPT, ESTIMATED)]
    assert read_all(file.getvalue()) == expected
    damaged = bytearray(ARCHIVE)
    damaged[20] ^= 1
    writer = ArchiveWriter(io.BytesIO(), HASH)
    with pytest.raises(FileFormatError, match="its record or a neighbour is damaged"):
        writer.copy(ArchiveReader(io.BytesIO(damaged)))
    with pytest.raises(ValueError, match="the archive is finished"):
        writer.finish()


def accepted(read: Callable[[bytes], Record], data: bytes) -> bool:
    """Whether `data` is accepted as a record; the record must then serialise to `data`."""
    try:
        record = read(data)
    except FileFormatError:
        return False
    assert record.to_bytes() == data
    return True


def test_garbage_is_refused_without_other_errors() -> None:
    generator = random.Random(0)
    good, heads = [ESTIMATED.to_bytes(), KEPT.to_bytes()], [ESTIMATED.parts(), KEPT.parts()]
    count = 0
    for _ in range(3000):
        noise = generator.randbytes(generator.randrange(60))
        for prefix in (b"", PICTURE[:14], ARCHIVE[:14]):
            with pytest.raises(FileFormatError):
                unpack(prefix + noise)
            with pytest.raises(FileFormatError):
                read_all(prefix + noise)
        # With correct checksums only the parsers can detect damage.
        accepted(lambda data: unpack(sealed(data))[1], noise)
        changed = bytearray(generator.choice(good))
        changed[generator.randrange(len(changed))] = generator.randrange(256)
        count += accepted(lambda data: unpack(sealed(data))[1], bytes(changed))
        head, body = generator.choice(heads)
        changed = bytearray(head + body)
        changed[generator.randrange(len(changed))] = generator.randrange(256)
        with suppress(FileFormatError):
            read = Record.from_parts(changed[: len(head)], 5, changed[len(head) :])
            assert read.parts() == (changed[: len(head)], changed[len(head) :])
        for compressed in (noise, zlib.compress(noise)):
            with pytest.raises(FileFormatError):
                read_all(with_index(compressed, BODIES))
        damaged = bytearray(ARCHIVE_INDEX)
        damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        with suppress(FileFormatError):  # names, checks and heads may be changed
            assert len(read_all(with_index(zlib.compress(damaged), BODIES))) == 2
    assert 100 < count < 2900  # the parser does not detect changed contents


HEAD = container.MAGIC + b"\3"


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", r"not an ITALIC file: it begins with b'', expected b'\\x89ITL'"),
        (b"\x89PNG\r\n", r"not an ITALIC file: it begins with b'\\x89PNG'"),
        (container.MAGIC + b"\2\0", "damaged: it has version 2 and kind 0, expected version 3"),
        (HEAD, "truncated: it ends after 5 bytes"),
        (container.MAGIC + b"\7\0", "version 7 of a newer ITALIC, .* version 3: update"),
        (container.MAGIC + b"\1\0", "damaged: it has version 1 and kind 0, expected version 3"),
        (HEAD + b"\1", "damaged: it has version 3 and kind 1, expected version 3 and kind 0, or"),
        (HEAD + b"\2", "damaged: it has version 3 and kind 2, expected version 3 and kind 0, or"),
        (container.MAGIC + b"\4\0", "version 4 and kind 0, expected version 3 and kind 0, or"),
        (HEAD + b"\0", "truncated: it ends after 6 bytes"),
        (PICTURE[:27], "truncated: it has 27 bytes, expected at least 28"),
        (
            PICTURE[:-1],
            "truncated, it lacks its last bytes: italic decompress --partial",
        ),
        (
            PICTURE[:-1] + b"\0",
            "the file is damaged: its CRC-32 is [0-9a-f]{8}, expected [0-9a-f]{8}",
        ),
        (ARCHIVE, "holds an archive of pictures: read it with ArchiveReader"),
    ],
)
def test_messages_of_pictures(data: bytes, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        unpack(data)


def listing(
    *names: bytes,
    shared: bytes | None = None,
    kinds: bytes | None = None,
    sizes: bytes | None = None,
    groups: bytes | None = None,
) -> bytes:
    """An archive of pictures of 3 bytes, by default in one group, with an index of these bytes."""
    count = len(names)
    columns = [shared or bytes(2 * count), b"".join(map(with_length, names))]
    columns += [kinds or bytes(count), sizes or count * b"\3" + bytes(count), count * b"\5\0"]
    columns.append(groups or bytes([1, count]) + struct.pack("<I", zlib.crc32(count * b"png")))
    index = bytes.fromhex("01 05 02 01 01 09 00") + bytes([count]) + b"".join(columns)
    return with_index(zlib.compress(index), count * b"png")


def with_length(name: bytes) -> bytes:
    return b"".join(container.fields.block(name))


@pytest.mark.parametrize(
    "data, message",
    [
        (PICTURE, "holds one picture: read it with unpack"),
        (ARCHIVE[:10], "truncated: it ends after 10 bytes"),
        (ARCHIVE[:29], "truncated: it has 29 bytes, expected more than 30"),
        (ARCHIVE[:-1], "truncated or was not finished: its last bytes are .*, expected b'LTI"),
        (ARCHIVE[:-16] + b"\xff" * 8 + ARCHIVE[-8:], "index of 18446744073709551615 bytes"),
        (ARCHIVE[:-17] + b"x" + ARCHIVE[-16:], "the archive's index is damaged: its CRC-32"),
        (with_index(b"zlib?"), "can't be decompressed"),
        (with_index(b""), "longer or shorter than its compressed data"),
        (with_index(zlib.compress(bytes(3)) + b"x"), "longer or shorter than its compressed data"),
        (with_index(zlib.compress(bytes(3))[:-1]), "longer or shorter than its compressed data"),
        (with_index(zlib.compress(bytes(2**18))), "its index decompresses to more than"),
        (with_index(zlib.compress(b"\0\0\0x")), "index is damaged: 1 bytes follow its end"),
        (with_index(zlib.compress(bytes(3)), b"x"), "lists 0 bytes of records, but the file has 1"),
        (with_index(zlib.compress(b"\0\7")), "lists 7 pictures, more than fit into 2"),
        (with_index(zlib.compress(b"\0\xff\xff\xff\xff\x0f")), "lists 4294967295 pictures"),
        (with_index(zlib.compress(b"\1")), "has 1 bytes, expected 2 or more"),
        (listing(b""), "'' is not a valid name: expected"),
        (listing(b".."), "'..' is not a valid name"),
        (listing(b"/a"), "'/a' is not a valid name"),
        (listing(b"\xff"), "not valid UTF-8"),
        (listing(b"a" * 12345), "name has 12345 bytes"),
        (listing(b"a/" * 32 + b"b"), "a name has 33 parts"),
        (listing(b"a", b"a"), "it has 'a' twice"),
        (listing(b"ab", b"", shared=b"\0\2\0\0"), "it has 'ab' twice"),
        (listing(b"ab", b"x", shared=b"\0\2\0\1"), "more in common with the one before"),
        (listing(b"a", kinds=b"\1"), "a head that is not in it"),
        (listing(b"a", sizes=b"\4\0"), "lists 4 bytes of records, but the file has 3"),
        (listing(b"a", groups=b"\0"), "its groups have 0 of 1 pictures"),
        (listing(b"a", groups=b"\2\1\0" + bytes(8)), "a group has 0 pictures of 0 bytes"),
        (listing(b"a", groups=b"\x09"), "it has fewer than 9 numbers left"),
    ],
)
def test_messages_of_archives(data: bytes, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        ArchiveReader(io.BytesIO(data))


CRC = "05000000"


@pytest.mark.parametrize(
    "record, message",
    [
        ("", "the record is damaged: it has 0 bytes, expected 1 or more"),
        ("08 01 01", "has method 8: expected 0 to 7"),
        ("02 00 01", "0 × 1 pixels: expected sides of 1 to"),
        ("02 ffffffff0f 01", "4294967295 × 1 pixels: expected sides of 1 to"),
        ("02 81808008 80808004", "16777217 × 8388608 pixels: .* at most 2\\^32 pixels"),
        ("02 80808001 81808000", "not in its shortest form"),
        ("02 8000 01", "not in its shortest form"),
        ("02 8080808010 01", "number of 2\\^32 or more"),
        ("02 808080808001 01", "number of 2\\^32 or more"),
        ("02 808001 818001", "16384 × 16385 = 268451840 pixels, more .* 268435456: .* max_pixels"),
        (f"02 01 01 {CRC} 0a 00 00", "has colour 10: expected 0 to 9"),
        (f"02 01 01 {CRC} 00 21", "has 33 chunks: expected at most 32"),
        (f"02 01 01 {CRC} 00 02 0100 0100 00", "several chunks of type 1: expected one"),
        (f"02 01 01 {CRC} 00 02 ff00 ff00 00", "several chunks of type 255: expected one"),
        (f"02 01 01 {CRC} 00 00 02 70", "damaged: it has 11 bytes, expected 12 or more"),
        (f"02 01 01 {CRC} 00 00 01 70 6e", "damaged: 1 bytes follow its end"),
        (
            f"05 01 02 {CRC} 02 00 00",
            "a JPEG file has 0 chunks and colour 2: expected",
        ),
        (f"06 01 02 {CRC} 00 01 04 00 00", "the record of a JPEG file has 1 chunks and colour 0"),
        (f"00 01 02 {CRC} 00 00 00 00 00 00", "has 0 steps: expected 1 to 2, which is the number"),
        (f"00 01 02 {CRC} 00 00 03 00 00 00", "has 3 steps: expected 1 to 2, which is the number"),
        (f"00 01 02 {CRC} 00 00 01 03 00 00", "has plan 3: expected 0 to 2"),
    ],
)
def test_messages_of_records(record: str, message: str) -> None:
    data = bytes.fromhex(record)
    with pytest.raises(FileFormatError, match=message):
        Record.from_bytes(data)
    with pytest.raises(FileFormatError):
        unpack(sealed(data))


def estimated(**changes: object) -> Record:
    fields = {name: getattr(ESTIMATED, name) for name in ESTIMATED.__dataclass_fields__}
    return Record(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: estimated(method=8), "method 8"),
        (lambda: estimated(colour=-1), "colour -1"),
        (lambda: estimated(height=2**31), "2147483648 × 300 pixels"),
        (lambda: estimated(checksum=2**32), "checksum is 4294967296"),
        (lambda: estimated(steps=601), "601 steps: expected 1 to 600, which is the number"),
        (lambda: estimated(chunks=((6, b""),) * 33), "33 chunks: expected at most 32"),
        (lambda: estimated(chunks=((256, b""),)), "type 256: expected 0 to 255"),
        (lambda: estimated(chunks=((3, b""), (3, b"x"))), "several chunks of type 3"),
        (lambda: estimated(method=Method.PNG), "only the estimator, method 0 or 7, has these"),
        (lambda: Plan("quad"), "unknown plan 'quad': expected own, equal or power"),  # type: ignore
        (lambda: Plan("power", 2.205), "exponent 2.205: expected 0 to 655.35 in whole hundredths"),
        (lambda: Plan("power", 655.36), "exponent 655.36"),
        (lambda: Plan("power", float("nan")), "exponent nan"),
        (lambda: Plan("own", 1.0), "exponent 1.0: expected 0 to 0.0"),
        (lambda: pack(b"short", ESTIMATED), "hash has 5 bytes: expected 8"),
        (lambda: ArchiveWriter(io.BytesIO(), b""), "hash has 0 bytes: expected 8"),
        (
            lambda: estimated(height=2**16, width=2**16, steps=2**16 + 1),
            "65537 steps: expected 1 to 65536",
        ),
    ],
)
def test_what_the_format_cannot_hold_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        make()


def test_large_pictures_need_leave() -> None:
    data = pack(HASH, KEPT)
    assert unpack(data, max_pixels=1)[1] == KEPT
    large = pack(HASH, ESTIMATED)
    with pytest.raises(FileFormatError, match="2 × 300 = 600 pixels, more than the limit of 599"):
        unpack(large, max_pixels=599)
    reader = ArchiveReader(io.BytesIO(ARCHIVE), max_pixels=599)
    assert reader.read(1) == in_archive(KEPT)
    with pytest.raises(FileFormatError, match=r"picture 'a.png': the picture has 2 × 300 = 600"):
        reader.read(0)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/a",
        "a/",
        "a//b",
        ".",
        "..",
        "a/../b",
        "./a",
        "a\0",
        "\ud800",
        "ü" * 2049,
        "a/" * 32 + "b",
    ],
)
def test_unsafe_names_are_refused_and_the_archive_goes_on(name: str) -> None:
    file = io.BytesIO()
    writer = ArchiveWriter(file, HASH)
    with pytest.raises(FileFormatError, match="name"):
        writer.add(name, KEPT)
    writer.add("a..b/...", KEPT)
    with pytest.raises(FileFormatError, match=r"already holds a picture 'a\.\.b/\.\.\.'"):
        writer.add("a..b/...", KEPT)
    writer.add("ü" * 2048, KEPT)
    writer.add("a/" * 31 + "b", KEPT)
    writer.finish()
    assert read_all(file.getvalue()) == 3 * [in_archive(KEPT)]
    for late in (writer.finish, lambda: writer.add("b", KEPT)):
        with pytest.raises(ValueError, match="the archive is finished"):
            late()


def test_a_full_index_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_index, "MAX_INDEX", 60)
    file = io.BytesIO()
    writer = ArchiveWriter(file, HASH)
    writer.add("a", KEPT)
    with pytest.raises(FileFormatError, match="the archive is full: with 1 pictures"):
        writer.add("b", KEPT)
    writer.finish()
    assert read_all(file.getvalue()) == [in_archive(KEPT)]


def test_no_such_picture() -> None:
    reader = ArchiveReader(io.BytesIO(ARCHIVE))
    with pytest.raises(KeyError):
        reader.read("b.png")
    with pytest.raises(IndexError):
        reader.read(2)


class CountingFile(io.BytesIO):
    count = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data


def test_only_what_is_needed_is_read() -> None:
    large = Record(Method.RAW, 100, 100, 1, Colour.RGB, stream=bytes(30000))
    data = archive({f"{place}.png": large if place else KEPT for place in range(50)})
    file = CountingFile(data)
    reader = ArchiveReader(file)
    assert file.count == len(data) - sum(reader.sizes) < 1000
    file.count = 0
    assert reader.read("0.png") == in_archive(KEPT)
    group = sum(reader.sizes[: reader.index.groups[0]])
    assert file.count == group + 3 <= archive_index.GROUP + 3  # its group, then itself
    file.count = 0
    assert reader.read("0.png") == in_archive(KEPT) and file.count == 3
    file.count = 0
    assert reader.read(7) == in_archive(large)
    assert file.count == 2 * reader.sizes[7]


class Pipe(io.RawIOBase):
    """A file that supports only writing."""

    def __init__(self) -> None:
        self.data = b""

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.data += data
        return len(data)


def test_archives_are_written_without_seeking() -> None:
    pipe = Pipe()
    writer = ArchiveWriter(pipe, bytes(8))  # type: ignore[arg-type]
    writer.add("a.png", ESTIMATED)
    writer.add("sub/ü.png", KEPT)
    writer.finish()
    assert read_all(pipe.data) == [in_archive(ESTIMATED), in_archive(KEPT)]


def test_lengths_that_lie_cost_no_memory() -> None:
    big = "ffffffff0f"
    huge = [
        sealed(bytes.fromhex(f"02 01 01 {CRC} 00 00 {big}")),
        sealed(bytes.fromhex(f"02 01 01 {CRC} 00 01 01 {big}")),
        sealed(bytes.fromhex(f"02 01 01 {CRC} 00 {big}")),
    ]
    lists = [bytes.fromhex(f"{big}"), bytes.fromhex(f"00 {big}"), bytes.fromhex(f"01 {big}")]
    tracemalloc.start()
    for data in huge:
        with pytest.raises(FileFormatError):
            unpack(data)
    for index in lists:
        with pytest.raises(FileFormatError):
            ArchiveReader(io.BytesIO(with_index(zlib.compress(index), bytes(14))))
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()

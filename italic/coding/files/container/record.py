"""The record of a coded picture, and its bytes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Literal, TypeVar

from italic.coding.files.container.fields import CHECKSUM, Cursor, FileFormatError, block, varint
from italic.schedule import Schedule

MAX_SIDE = 2**31 - 1  # pixels
MAX_AREA = 2**32  # pixels
DEFAULT_MAX_PIXELS = 2**28
MAX_EXPONENT = 655.35  # of `power` sizes
MAX_STEPS = 2**16  # bounds the work of decoding: a short stream can have any number of steps
MAX_CHUNKS = 32
SMALLEST_RECORD = 10  # bytes
_PLANS = ("own", "equal", "power")


class Method(IntEnum):
    """How the main picture is coded, or with `JPEG_METHODS` a JPEG file."""

    ESTIMATOR = 0
    RAW = 1
    PNG = 2
    WEBP = 3
    JPEG_XL = 4
    JPEG = 5  # the JPEG file itself
    JPEG_TRANSCODED = 6  # the JPEG file, by JPEG XL
    ESTIMATOR_PARTS = 7  # by the estimator, in independent parts


class Colour(IntEnum):
    """Kind of the original picture's samples."""

    RGB = 0
    GREY = 1
    PALETTE = 2
    GREY_ALPHA = 3
    RGB_ALPHA = 4
    GREY16 = 5
    RGB16 = 6
    RGB_ALPHA16 = 7
    GREY_ALPHA16 = 8
    BILEVEL = 9


ESTIMATOR_METHODS = (Method.ESTIMATOR, Method.ESTIMATOR_PARTS)
JPEG_METHODS = (Method.JPEG, Method.JPEG_TRANSCODED)


class Chunk(IntEnum):
    """Types of chunks beside the main picture; other types, up to 255, can be stored too."""

    ALPHA = 1
    PALETTE = 2
    LOW_BYTES = 3  # of 16-bit samples
    ICC = 4
    EXIF = 5
    TEXT = 6  # text chunks of a PNG file
    COLOUR_SPACE = 7
    PIXEL_SIZE = 8
    PALETTE_DIFFERENCES = 9  # in place of PALETTE
    LEVELS = 10  # used levels, if the main picture holds their ranks
    TONES = 11  # colours, if the main picture holds their ranks


REPEATABLE = (Chunk.TEXT, Chunk.PIXEL_SIZE)


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
        largest = MAX_EXPONENT if self.kind == "power" else 0.0
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
        checksum: CRC-32 of the main picture's samples, uint8, row by row, red green blue; with a
            method of `JPEG_METHODS`, of the JPEG file.
        colour: kind of the original picture's samples.
        chunks: types (0 to 255) and contents of the chunks, in the order of the file, at most 32;
            only the types in `REPEATABLE` may occur several times.
        steps: number of steps of the estimator, 1 to the number of pixels, at most 2^16; 0 for the
            other methods.
        plan: step sizes of the estimator; `Plan()` for the other methods.
        base: base code of the estimator; empty for the other methods, also for
            `Method.ESTIMATOR_PARTS`, whose base codes are in `stream`.
        stream: stream of the estimator, or data of the classical codec; with
            `Method.ESTIMATOR_PARTS` the parts, see `PartCodes`.
        short: whether `checksum` has its low 16 bits alone, as in an archive.
        part: side of the parts in pixels with `Method.ESTIMATOR_PARTS`, 1 to 2^31 - 1; otherwise 0.
        missing: number of bytes that lack at the end of `stream`, because the file was cut short.
            Such a record can't be serialised.

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
    short: bool = False
    part: int = 0
    missing: int = 0

    def __post_init__(self) -> None:
        _member(Method, self.method)
        _member(Colour, self.colour)
        check_size(self.height, self.width, MAX_AREA)
        bits = 16 if self.short else 32
        if not 0 <= self.checksum < 2**bits:
            raise FileFormatError(f"the checksum is {self.checksum}: expected 0 to 2^{bits} - 1")
        self._check_chunks()
        divided = self.method == Method.ESTIMATOR_PARTS
        if self.estimated:
            most = min(self.height * self.width, MAX_STEPS)
            if not 1 <= self.steps <= most:
                raise FileFormatError(
                    f"the record has {self.steps} steps: expected 1 to {most}, which is the number "
                    f"of pixels or {MAX_STEPS}"
                )
            if not divided <= self.part <= divided * MAX_SIDE or (divided and self.base):
                raise FileFormatError(
                    f"the record has parts of side {self.part} and {len(self.base)} bytes of base "
                    "code: expected a side from 1 to 2^31 - 1 and no base code with method 7, no "
                    "side with method 0"
                )
        elif self.method in JPEG_METHODS and (self.chunks or self.colour > Colour.GREY):
            raise FileFormatError(
                f"the record of a JPEG file has {len(self.chunks)} chunks and colour "
                f"{self.colour:d}: expected no chunks and colour 0 or 1"
            )
        elif self.steps or self.base or self.part or self.plan != Plan():
            raise FileFormatError(
                "the record has steps, a plan, parts or a base code, but its method is "
                f"{self.method}: only the estimator, method 0 or 7, has these"
            )

    def _check_chunks(self) -> None:
        _check_number_of_chunks(len(self.chunks))
        seen = set()
        for kind, _ in self.chunks:
            if not 0 <= kind <= 255:
                raise FileFormatError(f"the record has a chunk of type {kind}: expected 0 to 255")
            if kind in seen and kind not in REPEATABLE:
                raise FileFormatError(
                    f"the record has several chunks of type {kind}: expected one at most"
                )
            seen.add(kind)

    @property
    def estimated(self) -> bool:
        """Whether the main picture is coded by the estimator, so that decoding needs a model."""
        return self.method in ESTIMATOR_METHODS

    def agrees(self, checksum: int) -> bool:
        """Whether a CRC-32 equals that of the record, as far as the record holds it."""
        return checksum & (0xFFFF if self.short else 0xFFFFFFFF) == self.checksum

    def parts(self) -> tuple[bytes, bytes]:
        """Serialise the record for an archive: its head, without the checksum, and its body.

        Raises:
            FileFormatError: a number or a length is 2^32 or more, or bytes are missing.
        """
        head = [bytes([self.method]), varint(self.height), varint(self.width)]
        head += [bytes([self.colour]), varint(len(self.chunks))]
        head.append(bytes(kind for kind, _ in self.chunks))
        body = [part for _, content in self.chunks for part in block(content)]
        self._check_whole()
        if self.estimated:
            head += self._steps()
        if self.method == Method.ESTIMATOR:
            head.append(bytes([bool(self.base)]))
            body += block(self.base) if self.base else []
        return b"".join(head), b"".join([*body, self.stream])

    @classmethod
    def from_parts(
        cls, head: bytes, checksum: int, body: bytes, max_pixels: int = DEFAULT_MAX_PIXELS
    ) -> Record:
        """Parse the head and the body of a record in an archive; the inverse of `parts`.

        Args:
            head: the head.
            checksum: the low 16 bits of the checksum.
            body: the body.
            max_pixels: maximum number of pixels; larger pictures are refused.

        Raises:
            FileFormatError: the record is damaged, or its picture is too large.
        """
        cursor = Cursor(head, "the head of the record")
        method = _member(Method, cursor.unsigned(1))
        height, width = cursor.varint(), cursor.varint()
        check_size(height, width, max_pixels)
        colour = _member(Colour, cursor.unsigned(1))
        kinds = cursor.take(_count_of_chunks(cursor))
        steps, plan, part = _read_steps(cursor, method)
        base, based = b"", 0
        if method == Method.ESTIMATOR:
            based = cursor.unsigned(1)
            if based > 1:
                raise FileFormatError(f"the record has base code {based}: expected 0 or 1")
        cursor.finish()
        cursor = Cursor(body, "the record")
        chunks = tuple((kind, cursor.block()) for kind in kinds)
        if based:
            base = cursor.block()
            if not base:
                raise FileFormatError("the record has an empty base code, but its head names one")
        fields = (method, height, width, checksum, colour, chunks, steps, plan, base)
        return cls(*fields, cursor.rest(), short=True, part=part)

    def _steps(self) -> list[bytes]:
        """The number of steps, the plan, and the side of the parts if there are parts."""
        parts = [varint(self.steps), bytes([_PLANS.index(self.plan.kind)])]
        if self.plan.kind == "power":
            parts.append(round(100 * self.plan.exponent).to_bytes(2, "little"))
        return [*parts, varint(self.part)] if self.part else parts

    def _check_whole(self) -> None:
        if self.missing:
            raise FileFormatError(
                f"the record lacks {self.missing} bytes at its end: it can't be stored again"
            )

    def to_bytes(self) -> bytes:
        """Serialise the record for a file of one picture, without the CRC-32 that follows it.

        Raises:
            FileFormatError: a number or a length is 2^32 or more, bytes are missing, or the record
                is from an archive.
        """
        if self.short:
            raise FileFormatError(
                "the record of an archive has a short checksum: a file of one picture needs 32 bits"
            )
        self._check_whole()
        parts = [
            bytes([self.method]),
            varint(self.height),
            varint(self.width),
            CHECKSUM.pack(self.checksum),
            bytes([self.colour]),
            varint(len(self.chunks)),
        ]
        for kind, content in self.chunks:
            parts += [bytes([kind]), *block(content)]
        if self.estimated:
            parts += self._steps()
        if self.method == Method.ESTIMATOR:
            parts += block(self.base)
        return b"".join(parts + block(self.stream))

    @classmethod
    def from_bytes(
        cls,
        data: bytes | memoryview,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        cut: bool = False,
    ) -> Record:
        """Parse a record of a file of one picture that fills `data`.

        Args:
            data: the record, without the CRC-32 that follows it in files.
            max_pixels: maximum number of pixels; larger pictures are refused.
            cut: `data` is the end of a file that was cut short, maybe within the CRC-32: the last
                block may lack bytes, and up to three bytes may follow it.

        Raises:
            FileFormatError: the record is damaged, or its picture is too large.
        """
        cursor = Cursor(data, "the record")
        method = _member(Method, cursor.unsigned(1))
        height, width = cursor.varint(), cursor.varint()
        check_size(height, width, max_pixels)
        checksum = cursor.unsigned(4)
        colour = _member(Colour, cursor.unsigned(1))
        count = _count_of_chunks(cursor)
        chunks = tuple((cursor.unsigned(1), cursor.block()) for _ in range(count))
        steps, plan, part = _read_steps(cursor, method)
        base = cursor.block() if method == Method.ESTIMATOR else b""
        fields = (method, height, width, checksum, colour, chunks, steps, plan, base)
        if not cut:
            stream = cursor.block()
            cursor.finish()
            return cls(*fields, stream, part=part)
        length, stream = cursor.varint(), cursor.rest()
        if len(stream) >= length + CHECKSUM.size:
            raise FileFormatError("the record is damaged: the file does not end within it")
        missing = max(0, length - len(stream))
        return cls(*fields, stream[:length], part=part, missing=missing)


def _count_of_chunks(cursor: Cursor) -> int:
    """The number of chunks, checked before memory is allocated for them."""
    count = cursor.varint()
    _check_number_of_chunks(count)
    return count


def _check_number_of_chunks(count: int) -> None:
    if count > MAX_CHUNKS:
        raise FileFormatError(f"the record has {count} chunks: expected at most {MAX_CHUNKS}")


def _read_steps(cursor: Cursor, method: Method) -> tuple[int, Plan, int]:
    """The number of steps, the plan, and the side of the parts; 0 if there are none."""
    if method not in ESTIMATOR_METHODS:
        return 0, Plan(), 0
    steps, plan = cursor.varint(), _read_plan(cursor)
    return steps, plan, cursor.varint() if method == Method.ESTIMATOR_PARTS else 0


def _read_plan(cursor: Cursor) -> Plan:
    code = cursor.unsigned(1)
    if code == 0:
        return Plan("own")
    if code == 1:
        return Plan("equal")
    if code == 2:
        return Plan("power", cursor.unsigned(2) / 100)
    raise FileFormatError(f"the record has plan {code}: expected 0 to 2")


def check_size(height: int, width: int, max_pixels: int) -> None:
    """Raise FileFormatError if a picture has another size than the format and the limit permit."""
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


E = TypeVar("E", bound=IntEnum)


def _member(kind: type[E], value: int) -> E:
    try:
        return kind(value)
    except ValueError:
        raise FileFormatError(
            f"the record has {kind.__name__.lower()} {value}: expected 0 to {max(kind):d}"
        ) from None

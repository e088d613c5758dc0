"""Pictures in independent parts: the grid, and the bytes of the parts in a record."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

from italic.coding.files.container.fields import Cursor, FileFormatError, block, varint
from italic.schedule import steps_text


class Box(NamedTuple):
    """A rectangle of pixels: its upper left corner and its size."""

    top: int
    left: int
    height: int
    width: int

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return self.height * self.width

    @property
    def slices(self) -> tuple[slice, slice]:
        """The indices of the rows and columns."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    def common(self, other: Box) -> Box:
        """The pixels that both rectangles have; height or width are 0 or less if there are none."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        bottom = min(self.top + self.height, other.top + other.height)
        right = min(self.left + self.width, other.left + other.width)
        return Box(top, left, bottom - top, right - left)

    def within(self, other: Box) -> Box:
        """The rectangle relative to the corner of another one."""
        return self._replace(top=self.top - other.top, left=self.left - other.left)


@dataclass(frozen=True)
class Grid:
    """The division of a picture into parts of about equal size, numbered row by row from 0.

    Attributes:
        height: height of the picture in pixels.
        width: its width.
        side: P. A side of n pixels is divided into max(1, n/P) parts, where n/P is rounded to the
            nearest integer, halves up.
    """

    height: int
    width: int
    side: int

    @property
    def rows(self) -> int:
        """Number of parts from top to bottom."""
        return max(1, (2 * self.height + self.side) // (2 * self.side))

    @property
    def columns(self) -> int:
        """Number of parts from left to right."""
        return max(1, (2 * self.width + self.side) // (2 * self.side))

    def __len__(self) -> int:
        """Return the number of parts."""
        return self.rows * self.columns

    def box(self, number: int) -> Box:
        """The pixels of a part."""
        row, column = divmod(number, self.columns)
        top, bottom = (i * self.height // self.rows for i in (row, row + 1))
        left, right = (i * self.width // self.columns for i in (column, column + 1))
        return Box(top, left, bottom - top, right - left)

    def overlapping(self, region: Box) -> list[int]:
        """The parts that share pixels with a region within the picture, in order."""
        first, last = (
            (((y + 1) * self.rows - 1) // self.height)
            for y in (region.top, region.top + region.height - 1)
        )
        left, right = (
            (((x + 1) * self.columns - 1) // self.width)
            for x in (region.left, region.left + region.width - 1)
        )
        return [
            row * self.columns + column
            for row in range(first, last + 1)
            for column in range(left, right + 1)
        ]

    def sizes(self) -> Counter[int]:
        """How many parts there are, by their number of pixels."""
        rows, columns = (
            Counter({size: count - rest, size + 1: rest})
            for size, rest, count in (
                (*divmod(self.height, self.rows), self.rows),
                (*divmod(self.width, self.columns), self.columns),
            )
        )
        counts: Counter[int] = Counter()
        for height, count in (+rows).items():
            for width, times in (+columns).items():
                counts[height * width] += count * times
        return counts


@dataclass(frozen=True)
class PartCodes:
    """The coded parts of a picture, as the last block of a record holds them.

    The stream of each part is divided into segments, one for each step. A decoder that has the
    segments of the first steps can decode these steps.

    Attributes:
        bases: base code of each part; empty if the model has none.
        bounds: ends of the segments in `data`, by step and then by part; the first number is 0.
        data: the segments, one after the other. If the file was cut short, its end is missing.
    """

    bases: tuple[bytes, ...]
    bounds: Sequence[int]
    data: bytes

    @classmethod
    def of(cls, parts: Sequence[tuple[bytes, Sequence[bytes]]], steps: int) -> PartCodes:
        """The codes of parts, each given by its base code and at most `steps` segments."""
        segments = [
            part[step] if step < len(part) else b"" for step in range(steps) for _, part in parts
        ]
        bounds = tuple(accumulate(map(len, segments), initial=0))
        return cls(tuple(base for base, _ in parts), bounds, b"".join(segments))

    def to_bytes(self) -> bytes:
        """The block: base codes, lengths of the segments, segments.

        Raises:
            FileFormatError: a length is 2^32 or more.
        """
        lengths = b"".join(varint(end - start) for start, end in pairwise(self.bounds))
        return b"".join(
            [*(byte for base in self.bases for byte in block(base)), lengths, self.data]
        )

    @classmethod
    def from_bytes(cls, data: bytes, grid: Grid, steps: int, missing: int = 0) -> PartCodes:
        """Parse a block.

        Args:
            data: the block.
            grid: the parts of the picture.
            steps: number of steps of the record; a part with fewer pixels has fewer.
            missing: number of bytes that lack at the end.

        Raises:
            FileFormatError: the block is damaged, or ends before the first segment.
        """
        # Each base code and each segment has at least one byte for its length. This precedes any
        # list of this length.
        least = len(grid) * (steps + 1)
        if least > len(data):
            raise FileFormatError(
                f"the record is damaged or ends early: it has {len(data)} bytes for {len(grid)} "
                f"parts in {steps_text(steps)}, expected {least} or more"
            )
        cursor = Cursor(data, "the list of parts")
        bases = tuple(cursor.block() for _ in range(len(grid)))
        lengths = (cursor.varint() for _ in range(len(grid) * steps))
        bounds = array("Q", accumulate(lengths, initial=0))
        rest = cursor.rest()
        if bounds[-1] != len(rest) + missing:
            raise FileFormatError(
                f"the list of parts is damaged: its segments have {bounds[-1]} bytes, but "
                f"{len(rest) + missing} follow it"
            )
        codes = cls(bases, bounds, rest)
        if steps > min(grid.sizes()):
            for part in range(len(grid)):
                own = min(steps, grid.box(part).pixels)
                if any(codes.length(part, step, step + 1) for step in range(own, steps)):
                    raise FileFormatError(
                        f"the list of parts is damaged: part {part} has more than {steps_text(own)}"
                    )
        return codes

    def length(self, part: int, start: int, stop: int) -> int:
        """Bytes of the segments of a part in the steps from `start` to `stop` - 1."""
        return sum(map(self._length, self._places(part, start, stop)))

    def stream(self, part: int, steps: int) -> bytes:
        """The segments of a part in the first steps, joined."""
        places = self._places(part, 0, steps)
        return b"".join(self.data[self.bounds[i] : self.bounds[i + 1]] for i in places)

    @property
    def whole_steps(self) -> int:
        """The number of first steps whose segments are complete in all parts."""
        return (bisect_right(self.bounds, len(self.data)) - 1) // len(self.bases)

    def _places(self, part: int, start: int, stop: int) -> range:
        parts = len(self.bases)
        return range(start * parts + part, stop * parts, parts)

    def _length(self, place: int) -> int:
        return self.bounds[place + 1] - self.bounds[place]

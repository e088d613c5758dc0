"""Pictures in parts: the grid, and the bytes of the parts."""

from __future__ import annotations

import numpy as np
import pytest

from italic.coding.files.container import Box, FileFormatError, Grid, PartCodes


def test_grid() -> None:
    assert [len(Grid(n, 1, 8)) for n in (1, 11, 12, 19, 20)] == [1, 1, 2, 2, 3]
    for height, width, side in ((21, 30, 8), (1, 1, 1), (5, 7, 1), (100, 9, 512)):
        grid, covered = Grid(height, width, side), np.zeros((height, width), int)
        boxes = [grid.box(number) for number in range(len(grid))]
        for box in boxes:
            covered[box.slices] += 1
        assert (covered == 1).all()
        assert +grid.sizes() == {
            pixels: [box.pixels for box in boxes].count(pixels) for pixels in grid.sizes()
        }
        random = np.random.default_rng(0)
        for _ in range(20):
            top, left = int(random.integers(height)), int(random.integers(width))
            region = Box(top, left, int(random.integers(1, height - top + 1)), width - left)
            shared = [i for i, box in enumerate(boxes) if min(box.common(region)[2:]) > 0]
            assert grid.overlapping(region) == shared


def test_golden_block() -> None:
    grid = Grid(2, 3, 1)
    cells = [(b"", [bytes([i]), b"%d" % i * 2]) for i in range(5)] + [(b"base", [b"x", b""])]
    block = PartCodes.of(cells, 2).to_bytes()
    expected = "00 00 00 00 00 0462617365" + "01" * 6 + "0202020202 00"
    expected += "00 01 02 03 04 78 3030 3131 3232 3333 3434"
    assert block == bytes.fromhex(expected)
    with pytest.raises(FileFormatError, match=r"part 0 has more than 1 step$"):
        PartCodes.from_bytes(block, grid, 2)
    codes = PartCodes.from_bytes(block, Grid(4, 6, 2), 2)
    assert codes.stream(3, 2) == b"\x0333" and codes.bases[5] == b"base"
    assert codes.stream(3, 1) == b"\x03" and codes.whole_steps == 2

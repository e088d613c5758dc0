from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from italic.coding.base_codes import bpg_colour


def random_planes(*shape: int) -> np.ndarray:
    """Random planes; half of the samples are at the ends of the range, where clipping occurs."""
    rng = np.random.default_rng(sum(shape))
    noise = rng.integers(0, 256, shape)
    return np.where(rng.random(shape) < 0.5, noise, 255 * (noise > 127)).astype(np.uint8)


def nearest(x: Fraction) -> int:
    return (x + Fraction(1, 2)).__floor__()


def clip(x: int) -> int:
    return min(max(x, 0), 255)


def line_value(line: list[int], taps: tuple[int, ...], start: int) -> int:
    """Correlation at one position, with repeated edges."""
    return sum(t * line[min(max(start + i, 0), len(line) - 1)] for i, t in enumerate(taps))


def test_gray_stays_gray_both_ways() -> None:
    gray = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2)
    ycc = bpg_colour.rgb_to_ycc(gray)
    assert (ycc[..., 0] == gray[..., 0]).all()
    assert (ycc[..., 1:] == 128).all()
    for colour_space in bpg_colour.LUMA_WEIGHTS:
        assert (bpg_colour.to_rgb(ycc, colour_space, False) == gray).all()


def test_rgb_to_ycc_is_the_matrix_of_bt601() -> None:
    rgb = random_planes(40, 50, 3)
    red, green, blue = rgb.astype(float).transpose(2, 0, 1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    exact = np.stack([luma, 128 + (blue - luma) / 1.772, 128 + (red - luma) / 1.402], axis=2)
    assert np.abs(bpg_colour.rgb_to_ycc(rgb) - exact.clip(0, 255)).max() <= 0.5001


@pytest.mark.parametrize("colour_space", [0, 3, 4])
@pytest.mark.parametrize("limited", [False, True])
def test_ycc_to_rgb_is_the_inverse_matrix(colour_space: int, limited: bool) -> None:
    ycc = random_planes(40, 50, 3)
    red_weight, blue_weight = bpg_colour.LUMA_WEIGHTS[colour_space]
    y, cb, cr = ycc.astype(float).transpose(2, 0, 1)
    y = (y - 16) * 255 / 219 if limited else y
    cb, cr = ((c - 128) * (255 / 224 if limited else 1) for c in (cb, cr))
    red = y + 2 * (1 - red_weight) * cr
    blue = y + 2 * (1 - blue_weight) * cb
    green = (y - red_weight * red - blue_weight * blue) / (1 - red_weight - blue_weight)
    exact = np.stack([red, green, blue], axis=2).clip(0, 255)
    assert np.abs(bpg_colour.to_rgb(ycc, colour_space, limited) - exact).max() <= 0.501


def test_rgb_is_stored_as_green_blue_red() -> None:
    planes = random_planes(5, 6, 3)
    rgb = bpg_colour.to_rgb(planes, bpg_colour.RGB, False)
    assert (rgb == planes[..., [2, 0, 1]]).all()
    limited = bpg_colour.to_rgb(planes, bpg_colour.RGB, True)
    for stored, found in zip(planes[..., 2].flat, limited[..., 0].flat, strict=True):
        assert found == clip(nearest(Fraction(255 * (int(stored) - 16), 219)))


def test_ycgco_by_its_definition() -> None:
    planes = random_planes(9, 8, 3)
    y, cg, co = (planes.astype(int) - [0, 128, 128]).transpose(2, 0, 1)
    expected = np.stack([y - cg + co, y + cg, y - cg - co], axis=2).clip(0, 255)
    assert (bpg_colour.to_rgb(planes, bpg_colour.YCGCO, False) == expected).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (6, 1), (5, 5), (8, 13)])
@pytest.mark.parametrize("vertically", [False, True])
def test_downsample_against_a_slow_reference(size: tuple[int, int], vertically: bool) -> None:
    planes = random_planes(2, *size)
    found = bpg_colour.downsample(planes, vertically)
    for plane, result in zip(planes.tolist(), found.tolist(), strict=True):
        halved = [
            [line_value(row, bpg_colour.DOWN, 2 * i - 4) for i in range((len(row) + 1) // 2)]
            for row in plane
        ]
        if vertically:
            columns = [[(x + 1) >> 1 for x in column] for column in zip(*halved, strict=True)]
            columns = [
                [line_value(c, bpg_colour.DOWN, 2 * i - 4) for i in range((len(c) + 1) // 2)]
                for c in columns
            ]
            expected = [[clip((x + 4096) >> 13) for x in row] for row in zip(*columns, strict=True)]
        else:
            expected = [[clip((x + 64) >> 7) for x in row] for row in halved]
        assert result == expected


def slow_double(line: list[int], size: int, cosited: bool) -> list[int]:
    even = (64,) if cosited else bpg_colour.UP_EVEN
    odd = bpg_colour.UP_ODD_COSITED if cosited else bpg_colour.UP_EVEN[::-1]
    starts = (0 if cosited else -3, -3)
    return [line_value(line, (even, odd)[i % 2], i // 2 + starts[i % 2]) for i in range(size)]


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (6, 1), (5, 5), (8, 13)])
@pytest.mark.parametrize("vertically", [False, True])
@pytest.mark.parametrize("cosited", [False, True])
def test_upsample_against_a_slow_reference(
    size: tuple[int, int], vertically: bool, cosited: bool
) -> None:
    height, width = size
    planes = random_planes(2, (height + 1) // 2 if vertically else height, (width + 1) // 2)
    found = bpg_colour.upsample(planes, height, width, vertically, cosited)
    for plane, result in zip(planes.tolist(), found.tolist(), strict=True):
        rows, shift = plane, 6
        if vertically:
            columns = [slow_double(list(c), height, False) for c in zip(*plane, strict=True)]
            rows, shift = [list(row) for row in zip(*columns, strict=True)], 12
        expected = [
            [clip((x + (1 << shift >> 1)) >> shift) for x in slow_double(row, width, cosited)]
            for row in rows
        ]
        assert result == expected


@pytest.mark.parametrize("taps", [bpg_colour.UP_EVEN, bpg_colour.UP_ODD_COSITED])
def test_filters_keep_a_constant(taps: tuple[int, ...]) -> None:
    assert sum(taps) == 64
    assert sum(bpg_colour.DOWN) == 128
    flat = np.full((2, 9, 7), 201, np.uint8)
    assert (bpg_colour.downsample(flat, True) == 201).all()
    assert (bpg_colour.upsample(flat, 18, 14, True, False) == 201).all()

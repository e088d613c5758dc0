"""Colour conversion and chroma resampling of BPG, bit-exact with libbpg 0.9.8 at 8 bit."""

from __future__ import annotations

from functools import cache

import numpy as np

# Luma weights (k_r, k_b) of ITU-R BT.601, BT.709 and BT.2020, indexed by `color_space` of BPG.
LUMA_WEIGHTS = {0: (0.299, 0.114), 3: (0.2126, 0.0722), 4: (0.2627, 0.0593)}
RGB, YCGCO = 1, 2

# Filter taps, and the offsets of their input samples.
DOWN = (2, -4, -8, 17, 57, 57, 17, -8, -4, 2)  # / 128, offsets -4..5
UP_EVEN = (2, -6, 18, 57, -10, 4, -1)  # / 64, offsets -3..3; odd outputs use the reversed taps
UP_ODD_COSITED = (-1, 4, -11, 40, 40, -11, 4, -1)  # / 64, offsets -3..4; even outputs are copies


@cache
def _to_ycc_matrix() -> np.ndarray:
    """RGB to full range BT.601 YCbCr in units of 2^-23; int32 (3, 3), a column per component."""
    red, blue = LUMA_WEIGHTS[0]
    green = 1 - red - blue
    rows = [
        [red, green, blue],
        [-red / (1 - blue) / 2, -green / (1 - blue) / 2, 0.5],
        [0.5, -green / (1 - red) / 2, -blue / (1 - red) / 2],
    ]
    return np.array([[round(x * 2**23) for x in row] for row in rows], np.int32).T


@cache
def _to_rgb_matrix(colour_space: int, limited_range: bool) -> np.ndarray:
    """Components to RGB in units of 2^-22; (3, 3), a column per colour.

    For the full range, int32 holds every sum (at most 2.09e9, blue of BT.2020). The limited range
    needs int64.
    """
    luma, chroma = (255 / 219, 255 / 224) if limited_range else (1.0, 1.0)
    if colour_space == RGB:  # stored as G, B, R, each with the range of luma
        rows = [[0, 0, luma], [luma, 0, 0], [0, luma, 0]]
    elif colour_space == YCGCO:  # the range is limited before the transform, in RGB
        rows = [[luma, -luma, luma], [luma, luma, 0], [luma, -luma, -luma]]
    else:
        red, blue = LUMA_WEIGHTS[colour_space]
        green = 1 - red - blue
        rows = [
            [luma, 0, 2 * (1 - red) * chroma],
            [luma] + [-2 * k * (1 - k) / green * chroma for k in (blue, red)],
            [luma, 2 * (1 - blue) * chroma, 0],
        ]
    dtype = np.int64 if limited_range else np.int32
    return np.array([[round(x * 2**22) for x in row] for row in rows], dtype).T


def rgb_to_ycc(rgb: np.ndarray) -> np.ndarray:
    """RGB uint8 (H, W, 3) to full range BT.601 Y, Cb, Cr, uint8 (H, W, 3)."""
    # All sums stay below 255·(2^23 + 1) + 2^22 < 2^31.
    ycc = rgb.astype(np.int32) @ _to_ycc_matrix()
    ycc += 1 << 22
    ycc >>= 23
    ycc[..., 1:] += 128
    return ycc.clip(0, 255).astype(np.uint8)


def to_rgb(components: np.ndarray, colour_space: int, limited_range: bool) -> np.ndarray:
    """Convert the components of a BPG image to RGB.

    `components` is uint8 (H, W, 3) in the order of the planes (Y Cb Cr, G B R or Y Cg Co);
    `colour_space` is the `color_space` of BPG: 0 BT.601, 1 RGB, 2 YCgCo, 3 BT.709, 4 BT.2020.
    Returns uint8 (H, W, 3).
    """
    black = 16 if limited_range else 0
    matrix = _to_rgb_matrix(colour_space, limited_range)
    centre = np.array([black] * 3 if colour_space == RGB else [black, 128, 128], matrix.dtype)
    rgb = (components - centre) @ matrix
    rgb += 1 << 21
    rgb >>= 22
    return rgb.clip(0, 255).astype(np.uint8)


def _neighbours(planes: np.ndarray, before: int, after: int) -> np.ndarray:
    """Pad the last axis by repeating its edges."""
    width = planes.shape[-1]
    return planes.take(np.arange(-before, width + after).clip(0, width - 1), axis=-1)


def _filter(padded: np.ndarray, taps: tuple[int, ...], step: int = 1) -> np.ndarray:
    """Correlate the last axis with `taps`, at every `step`-th position where all taps fit."""
    stop = padded.shape[-1] - len(taps) + 1
    total = taps[0] * padded[..., :stop:step]
    for i, tap in enumerate(taps[1:], start=1):
        total += tap * padded[..., i : stop + i : step]
    return total


def _halve(planes: np.ndarray) -> np.ndarray:
    """Down-sample the last axis (n to ceil(n/2)), scaled by 128; int32."""
    return _filter(_neighbours(planes, 4, 5), DOWN, step=2)


def _double(planes: np.ndarray, size: int, cosited: bool = False) -> np.ndarray:
    """Up-sample the last axis (n to `size`, 2n or 2n - 1), scaled by 64; int32."""
    doubled = np.empty((*planes.shape[:-1], 2 * planes.shape[-1]), np.int32)
    if cosited:
        doubled[..., ::2] = planes << 6
        doubled[..., 1::2] = _filter(_neighbours(planes, 3, 4), UP_ODD_COSITED)
    else:
        padded = _neighbours(planes, 3, 3)
        doubled[..., ::2] = _filter(padded, UP_EVEN)
        doubled[..., 1::2] = _filter(padded, UP_EVEN[::-1])
    return doubled[..., :size]


def downsample(chroma: np.ndarray, vertically: bool) -> np.ndarray:
    """Halve chroma planes horizontally (4:2:2), and vertically too (4:2:0); JPEG positions.

    uint8 (..., H, W) to uint8 (..., ceil(H/2) or H, ceil(W/2)).
    """
    planes = _halve(chroma.astype(np.int32))
    if not vertically:
        return np.clip((planes + 64) >> 7, 0, 255).astype(np.uint8)
    planes = _halve(((planes + 1) >> 1).swapaxes(-1, -2)).swapaxes(-1, -2)
    return np.clip((planes + (1 << 12)) >> 13, 0, 255).astype(np.uint8)


def upsample(
    chroma: np.ndarray, height: int, width: int, vertically: bool, cosited: bool
) -> np.ndarray:
    """Double chroma planes horizontally (4:2:2), and vertically too (4:2:0).

    uint8 (..., ceil(height/2) or height, ceil(width/2)) to uint8 (..., height, width).
    `cosited`: the horizontal chroma positions are those of MPEG-2 instead of JPEG. The vertical
    positions are always those of JPEG.
    """
    planes = chroma.astype(np.int32)
    shift = 6
    if vertically:
        planes = _double(planes.swapaxes(-1, -2), height).swapaxes(-1, -2)
        shift = 12
    planes = _double(planes, width, cosited)
    return np.clip((planes + (1 << shift >> 1)) >> shift, 0, 255).astype(np.uint8)

"""Windows: the known pixels around each pixel, the input of the pixel predictor.

A window has P×P pixels of the lattice on which its pixel is predicted, centred on this pixel. The
inputs are integers of at most 8 bits. They depend on the pixels and the schedule, not on weights.
The guess is an initial prediction of a pixel without a network.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from italic.compiled import compiled
from italic.schedule import Partition

GREY = 128  # the guess if no pixel is known and there is no base code
LIMIT = 127  # largest magnitude of a difference
BASE_WINDOW = 5  # side of the windows of the base in pixels
NEAREST = 4096  # weight in the guess of a neighbour at distance 1; weights fall as distance^-4


class Windows(NamedTuple):
    """Windows of the same n pixels in B images.

    Attributes:
        rows: int8 (B, n, 3·P·P + 3). The first 3·P·P values are known pixels − guess, clamped to
            ±127, with three colours per pixel and 0 for unknown pixels. The last three values are
            guess − 128, clamped to ±127.
        guess: int16 (B, n, 3), grey levels: base + mean residual of the known pixels of the window,
            weighted by distance^-4.
    """

    rows: Tensor
    guess: Tensor


@lru_cache(maxsize=8)
def guess_weights(side: int) -> np.ndarray:
    """Weights of the pixels of a window in the guess, int32 (P·P,)."""
    return np.maximum(NEAREST // _squared_distances(side) ** 2, 1).astype(np.int32)


def nearness(side: int) -> np.ndarray:
    """Scales of the pixels of a window as inputs of the network, float32 (P·P,).

    They are distance^-1.5, and 1 for the centre. A trained network needs far pixels little. With
    equal scales it takes thousands of updates to learn that.
    """
    return (_squared_distances(side) ** -0.75).astype(np.float32)


def _squared_distances(side: int) -> np.ndarray:
    """Squared distances of a window's pixels from its centre, at least 1, int64 (P·P,)."""
    offsets = np.arange(side) - side // 2
    return np.maximum(offsets[:, None] ** 2 + offsets**2, 1).ravel()


def neighbours(partition: Partition, pixels: np.ndarray, side: int) -> np.ndarray:
    """Known pixels in the window of each pixel.

    Args:
        partition: the steps and the lattices of the pixels.
        pixels: int64 (n,), flat indices.
        side: side P of the windows, odd.

    Returns:
        int32 (n, P·P): flat indices of the pixels that are known before the step of the centre
        pixel; -1 for unknown pixels and outside the image.
    """
    found = np.empty((len(pixels), side * side), dtype=np.int32)
    _neighbours(pixels, partition.step_of_pixel, partition.strides, side // 2, found)
    return found


@compiled()
def _neighbours(
    pixels: np.ndarray, steps: np.ndarray, strides: np.ndarray, reach: int, found: np.ndarray
) -> None:
    height, width = steps.shape
    for i in range(pixels.size):
        y, x = pixels[i] // width, pixels[i] % width
        step, stride = steps[y, x], strides[y, x]
        place = 0
        for dy in range(-reach, reach + 1):
            row = y + dy * stride
            for dx in range(-reach, reach + 1):
                column = x + dx * stride
                index = -1
                if 0 <= row < height and 0 <= column < width and steps[row, column] < step:
                    index = row * width + column
                found[i, place] = index
                place += 1


def windows(image: Tensor, base: Tensor | None, pixels: np.ndarray, known: np.ndarray) -> Windows:
    """Windows of n pixels.

    Args:
        image: uint8 (B, H, W, 3); unknown pixels are not read.
        base: uint8 (B, H, W, 3), the base code's reconstruction; None for no base code.
        pixels: int64 (n,), flat indices.
        known: int32 (n, P·P), the result of `neighbours` for these pixels.
    """
    weight = guess_weights(round(known.shape[1] ** 0.5))
    if image.device.type != "cpu":
        return _on_device(image, base, pixels, known, weight)
    images = image.contiguous().flatten(1, 2).numpy()
    bases = np.zeros((0, 0, 3), np.uint8)
    if base is not None:
        bases = base.contiguous().flatten(1, 2).numpy()
    rows = np.zeros((len(images), len(pixels), 3 * known.shape[1] + 3), np.int8)
    guess = np.empty((len(images), len(pixels), 3), np.int16)
    _windows(images, bases, pixels, known, weight, rows, guess)
    return Windows(torch.from_numpy(rows), torch.from_numpy(guess))


@compiled()
def _windows(
    images: np.ndarray,
    bases: np.ndarray,
    pixels: np.ndarray,
    known: np.ndarray,
    weight: np.ndarray,
    rows: np.ndarray,
    guess: np.ndarray,
) -> None:
    with_base = bases.size > 0
    places = known.shape[1]
    level = np.empty(3, np.int64)
    found = np.empty(places, np.int64)  # places of the known pixels
    for n in range(pixels.size):
        total, count = 0, 0
        for place in range(places):
            if known[n, place] >= 0:
                found[count] = place
                count += 1
                total += weight[place]
        for i in range(images.shape[0]):
            level[:] = 0
            for k in range(count):
                place = found[k]
                index = known[n, place]
                for c in range(3):
                    base = bases[i, index, c] if with_base else GREY
                    level[c] += weight[place] * (np.int64(images[i, index, c]) - base)
            for c in range(3):
                if total > 0:
                    level[c] = (2 * level[c] + total) // (2 * total)
                level[c] += bases[i, pixels[n], c] if with_base else GREY
                level[c] = min(max(level[c], 0), 255)
                guess[i, n, c] = level[c]
                rows[i, n, 3 * places + c] = min(max(level[c] - GREY, -LIMIT), LIMIT)
            for k in range(count):
                place = found[k]
                index = known[n, place]
                for c in range(3):
                    difference = np.int64(images[i, index, c]) - level[c]
                    rows[i, n, 3 * place + c] = min(max(difference, -LIMIT), LIMIT)


def _on_device(
    image: Tensor, base: Tensor | None, pixels: np.ndarray, known: np.ndarray, weight: np.ndarray
) -> Windows:
    """`windows` in PyTorch operations, for any device."""
    batch, device = len(image), image.device
    places = torch.from_numpy(np.maximum(known, 0)).to(device).long()
    is_known = torch.from_numpy(known >= 0).to(device)[..., None]
    around = image.flatten(1, 2)[:, places.flatten()].view(batch, *places.shape, 3).long()
    if base is None:
        start = torch.full((), GREY, device=device)
        residuals = around - start
    else:
        flat = base.flatten(1, 2).long()
        start = flat[:, torch.from_numpy(pixels).to(device)]
        residuals = around - flat[:, places.flatten()].view_as(around)
    weighted = torch.from_numpy(weight).to(device).long()[:, None] * is_known
    total = weighted.sum(1).clamp(min=1)
    sums = (weighted * residuals).sum(2)
    guess = start + torch.div(2 * sums + total, 2 * total, rounding_mode="floor")
    guess = guess.clamp(0, 255)
    differences = (around - guess[:, :, None]) * is_known
    rows = torch.cat([differences.flatten(2), guess - GREY], dim=2).clamp(-LIMIT, LIMIT)
    return Windows(rows.to(torch.int8), guess.to(torch.int16))


def base_windows(base: Tensor, pixels: np.ndarray, guess: Tensor) -> Tensor:
    """Windows of the base around n pixels, at full resolution.

    Args:
        base: uint8 (B, H, W, 3).
        pixels: int64 (n,), flat indices.
        guess: int16 (B, n, 3), the guesses of the pixels.

    Returns:
        int8 (B, n, 3·`BASE_WINDOW`²): base − guess, clamped to ±127; edge pixels are repeated
        outside the image.
    """
    height, width = base.shape[1:3]
    y, x = np.divmod(pixels, width)
    offsets = np.arange(BASE_WINDOW) - BASE_WINDOW // 2
    rows = np.clip(y[:, None] + offsets, 0, height - 1)[:, :, None]
    columns = np.clip(x[:, None] + offsets, 0, width - 1)[:, None, :]
    index = torch.from_numpy((rows * width + columns).ravel()).to(base.device)
    around = base.flatten(1, 2).index_select(1, index).view(len(base), len(pixels), -1, 3)
    differences = around.to(torch.int16) - guess[:, :, None]
    return differences.clamp_(-LIMIT, LIMIT).to(torch.int8).flatten(2)

"""Pixel orders and steps by their former names."""

from __future__ import annotations

import numpy as np

from italic.orders import pixel_order
from italic.schedule import Partition, step_bounds

__all__ = ["lattice_strides", "pixel_order", "step_bounds", "step_of_pixel"]


def lattice_strides(order: np.ndarray, width: int, largest: int) -> np.ndarray:
    """Stride of the coarsest lattice that holds the first n pixels of an order, (N + 1,)."""
    pixels = len(order)
    partition = Partition(pixels // width, width, order, np.arange(pixels + 1))
    return np.append(largest, partition.strides_of_steps(largest))


def step_of_pixel(order: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Step (from 0) that codes each flat pixel index, int32 (H·W,)."""
    return Partition(1, len(order), order, bounds).step_of_pixel.ravel()

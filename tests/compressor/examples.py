"""Arrays and a BPG file for tests of the compressor."""

import numpy as np

from italic.coding.base_codes import bpg

GREY = np.arange(20, dtype=np.uint8).reshape(4, 5)
FLAT_BPG = bpg.encode(np.zeros((8, 8, 3), np.uint8), 40)


def smooth(count: int, height: int, width: int) -> np.ndarray:
    """Noisy waves, which even an untrained estimator compresses."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    waves = 120 + 60 * np.sin(x / 5 + y / 7) + 20 * np.cos(x / 3)
    grey = waves[None, ..., None] + random.normal(0, 2, (count, height, width, 1))
    return (grey + random.normal(0, 2, (count, height, width, 3))).clip(0, 255).astype(np.uint8)

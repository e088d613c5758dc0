"""Images for tests of the codec."""

import numpy as np


def images(count: int, height: int, width: int) -> np.ndarray:
    """Smooth images with some noise."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    slopes = random.normal(size=(count, 2, 1, 1, 3))
    smooth = 128 + slopes[:, 0] * y[..., None] + slopes[:, 1] * x[..., None]
    return np.clip(smooth + random.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)

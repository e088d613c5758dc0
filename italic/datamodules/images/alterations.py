"""Random alterations of training crops, as photographs are altered in use.

A network that was trained on original photographs alone takes more bits for altered ones than
needed. All functions take and return an image, uint8 (H, W, 3). All random numbers are from
PyTorch's default generator.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np
import torch
from PIL import Image, ImageFilter

from italic.coding.files.container import Colour
from italic.coding.files.pictures import ranked

JPEG_BLOCK = 8  # side of a block in pixels


def altered(image: np.ndarray) -> np.ndarray:
    """The image after one of `ALTERATIONS`, which is drawn in proportion to its weight."""
    drawn = torch.multinomial(torch.tensor(list(ALTERATIONS.values())), 1)
    return list(ALTERATIONS)[int(drawn)](image)


def grey(image: np.ndarray) -> np.ndarray:
    """Luminance in all three colours."""
    return np.repeat(_luminance(image)[..., None], 3, axis=2)


def tinted(image: np.ndarray) -> np.ndarray:
    """Colours that are functions of the luminance, as in sepia: a power of it times a factor."""
    luminance = _luminance(image)
    levels = np.arange(256)[:, None] / 255
    exponents, factors = np.array(_uniform(0.8, 1.25, 3)), np.array(_uniform(0.7, 1.0, 3))
    return np.rint(255 * factors * levels**exponents).astype(np.uint8)[luminance]


def stretched(image: np.ndarray) -> np.ndarray:
    """Levels stretched by a factor of 1 to 2 about a fixed one, and clipped at the ends.

    If the compressor would code ranks of the levels, the result is in ranks.
    """
    (factor,), (fixed,) = _uniform(1, 2, 1), _uniform(0, 255, 1)
    levels = np.rint((np.arange(256) - fixed) * factor + fixed).clip(0, 255).astype(np.uint8)
    ranks = ranked(Colour.RGB, levels[image], ())
    return levels[image] if ranks is None else ranks[0]


def cut_out(image: np.ndarray) -> np.ndarray:
    """The brighter or the darker part replaced by one colour: white, black or any other."""
    (radius,), (fraction,) = _uniform(0.5, 4, 1), _uniform(0.1, 0.9, 1)
    blur = ImageFilter.GaussianBlur(radius)
    smooth = np.asarray(Image.fromarray(_luminance(image)).filter(blur)).astype(int)
    sign = 2 * int(torch.randint(2, ())) - 1
    background = sign * smooth > np.quantile(sign * smooth, fraction)
    colour = (255, 0, torch.randint(256, (3,)).numpy())[int(torch.randint(3, ()))]
    result = image.copy()
    result[background] = colour
    return result


def from_jpeg(image: np.ndarray) -> np.ndarray:
    """Decoded JPEG of quality 60 to 97; half of the images begin at the corner of a block."""
    quality, subsampling = int(torch.randint(60, 98, ())), (0, 2)[int(torch.randint(2, ()))]
    y, x = torch.randint(JPEG_BLOCK, (2,)).tolist() if torch.rand(()) < 0.5 else (0, 0)
    file = BytesIO()
    whole = np.pad(image, ((y, 0), (x, 0), (0, 0)), mode="edge")
    Image.fromarray(whole).save(file, "JPEG", quality=quality, subsampling=subsampling)
    with Image.open(file) as decoded:
        return np.asarray(decoded)[y:, x:]


ALTERATIONS: dict[Callable[[np.ndarray], np.ndarray], float] = {
    grey: 3.0,
    tinted: 1.0,
    stretched: 1.0,
    cut_out: 2.0,
    from_jpeg: 3.0,
}


def _luminance(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).convert("L"))


def _uniform(least: float, largest: float, count: int) -> list[float]:
    return (least + (largest - least) * torch.rand(count)).tolist()

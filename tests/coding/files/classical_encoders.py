"""Streams of classical codecs for tests of their decoders."""

from collections.abc import Callable

import imagecodecs
import numpy as np

from italic.coding.files.container import Method

ENCODERS: dict[Method, Callable[[np.ndarray], bytes]] = {
    Method.RAW: np.ndarray.tobytes,
    Method.PNG: imagecodecs.png_encode,
    Method.WEBP: lambda image: imagecodecs.webp_encode(image, lossless=True),
    Method.JPEG_XL: lambda image: imagecodecs.jpegxl_encode(image, lossless=True, effort=3),
}


def encoded(method: Method, image: np.ndarray) -> bytes:
    return bytes(ENCODERS[method](image))


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)

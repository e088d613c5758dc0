"""Planes of samples and palette indices beside the main picture."""

from __future__ import annotations

import zlib

import numpy as np

from italic.coding.files.container import Box, Chunk
from italic.coding.files.pictures.errors import damaged, inflated

# Prediction of planes before zlib: bits of a chunk's first byte.
_LEFT, _UP, _REFERENCE = 1, 2, 4


def pack_plane(plane: np.ndarray, reference: np.ndarray | np.uint8) -> bytes:
    """Encode samples as a chunk: a byte for the prediction, then the residuals by zlib.

    If all residuals are 0, there are no further bytes.

    Args:
        plane: uint8 (H, W, C).
        reference: uint8, prediction of the plane, in a shape that broadcasts to it.
    """
    plane = plane.transpose(2, 0, 1)
    prediction = np.broadcast_to(reference, plane.shape[1:] + plane.shape[:1]).transpose(2, 0, 1)

    def residual(method: int) -> np.ndarray:
        rest = plane - prediction if method & _REFERENCE else plane
        if method & _LEFT:
            rest = np.diff(rest, axis=2, prepend=np.uint8(0))
        if method & _UP:
            rest = np.diff(rest, axis=1, prepend=np.uint8(0))
        return rest

    for method in (0, _REFERENCE):
        if not residual(method).any():
            return bytes([method])
    # The fastest level of compression is enough for the comparison.
    sizes = {
        method: len(zlib.compress(residual(method).tobytes(), 1))
        for method in (0, _LEFT, _UP, _LEFT | _UP, _REFERENCE)
    }
    best = min(sizes, key=sizes.__getitem__)
    return bytes([best]) + zlib.compress(residual(best).tobytes(), 9)


def unpack_plane(
    data: bytes, shape: tuple[int, ...], reference: np.ndarray | np.uint8, what: str, box: Box
) -> np.ndarray:
    """Invert `pack_plane` for the pixels of a rectangle.

    Args:
        data: the chunk.
        shape: (H, W, C), shape of the whole plane.
        reference: uint8, prediction of the pixels in `box`, in a shape that broadcasts to them.
        what: name of the chunk in messages.
        box: the rectangle.

    Returns:
        uint8 (height, width, C) of the rectangle.

    Raises:
        PictureError: the chunk is damaged.
    """
    height, width, channels = shape
    size = height * width * channels
    if not data or data[0] > (_LEFT | _UP | _REFERENCE):
        raise damaged(f"its {what} begins with an unknown method")
    method, body = data[0], data[1:]
    raw = inflated(body, size, what) if body else bytes(size)
    if len(raw) != size:
        raise damaged(f"its {what} has {len(raw)} bytes, expected {size}")
    plane = np.frombuffer(raw, np.uint8).reshape(channels, height, width)
    if method & _UP:
        plane = plane.cumsum(axis=1, dtype=np.uint8)
    if method & _LEFT:
        plane = plane.cumsum(axis=2, dtype=np.uint8)
    plane = plane.transpose(1, 2, 0)[box.slices]
    return plane + reference if method & _REFERENCE else plane


def pack_palette(palette: bytes) -> tuple[Chunk, bytes]:
    """Encode a palette as the shorter one of two chunks: its bytes, or differences, by zlib.

    See `colour_differences`.
    """
    differences = colour_differences(np.frombuffer(palette, np.uint8).reshape(-1, 3))
    plain, short = zlib.compress(palette, 9), zlib.compress(differences, 9)
    if len(short) < len(plain):
        return Chunk.PALETTE_DIFFERENCES, short
    return Chunk.PALETTE, plain


def colour_differences(colours: np.ndarray) -> bytes:
    """Differences between consecutive colours, uint8 (N, 3), modulo 256, channel by channel."""
    return np.diff(colours.T, axis=1, prepend=np.uint8(0)).tobytes()


def palette_of(differences: bytes) -> bytes:
    """Invert `colour_differences`; the colours are bytes red, green and blue.

    Raises:
        PictureError: the number of bytes is not a multiple of 3.
    """
    if len(differences) % 3:
        raise damaged(f"it has a palette of {len(differences)} bytes")
    channels = np.frombuffer(differences, np.uint8).reshape(3, -1)
    return channels.cumsum(axis=1, dtype=np.uint8).T.tobytes()


def sorted_palette(palette: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sort a palette of N colours, bytes red, green and blue.

    Returns:
        The indices of the colours in sorted order, int64 (N,); the sorted colours as `numbers`,
        uint32 (N,); and the rank of each colour among equal colours, uint8 (N,), in the original
        order of the palette.
    """
    colours = numbers(np.frombuffer(palette, np.uint8).reshape(-1, 3))
    order = np.argsort(colours, kind="stable")
    ranks = np.empty(len(order), np.uint8)
    ranks[order] = np.arange(len(order)) - np.searchsorted(colours[order], colours[order])
    return order, colours[order], ranks


def palette_indices(palette: bytes, main: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """The palette index of each pixel, uint8 (H, W), from its colour and rank.

    Args:
        palette: colours, bytes red, green and blue.
        main: uint8 (H, W, 3), colours of the pixels.
        ranks: uint8 (H, W), ranks of the indices among equal colours, see `sorted_palette`.

    Raises:
        PictureError: the palette is damaged, or lacks a colour or a rank.
    """
    if not palette or len(palette) % 3:
        raise damaged(f"it has a palette of {len(palette)} bytes")
    order, colours, _ = sorted_palette(palette)
    wanted = numbers(main)
    places = np.searchsorted(colours, wanted).astype(np.uint16) + ranks
    if (places >= len(order)).any() or (colours[places] != wanted).any():
        raise damaged("its palette does not have all colours of its main picture")
    return order.astype(np.uint8)[places]


def numbers(colours: np.ndarray) -> np.ndarray:
    """Colours, uint8 (..., 3), as one number each, uint32 (...)."""
    red, green, blue = (colours[..., i].astype(np.uint32) for i in range(3))
    return red << 16 | green << 8 | blue

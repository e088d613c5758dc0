"""Compress and decompress pictures given as arrays: the functions of `italic`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from italic.coding.files import jpeg
from italic.coding.files.container import DEFAULT_MAX_PIXELS, Colour, pack, unpack
from italic.coding.files.pictures import forms, from_array, read
from italic.coding.model_files.installed import model_for_pixels
from italic.compressor.argument_checks import file_bytes, limit, on_device, several, whole_number
from italic.compressor.compression import compress_each
from italic.compressor.decompression import decompress_records, from_file, loaded, model_for
from italic.compressor.regions import Region

# PyTorch takes seconds to import, and what classical codecs code does not need it.
if TYPE_CHECKING:
    import torch

    from italic.coding.model_files.model import Model


def compress(
    array: np.ndarray,
    model: str | Path | Model | None = None,
    steps: int | None = None,
    device: str | torch.device | None = None,
) -> bytes:
    """Compress a picture into a file.

    Args:
        array: uint8 or uint16, (H, W) grey, or (H, W, C): grey, grey and alpha, RGB, RGBA.
        model: a model, its name or the path of its file; None for the one that declares to be for
            pictures of this size.
        steps: from 1 (fast) to the number of pixels (small file); None for the model's default.
            The number is halved until decoders accept the work, see `decompress`.
        device: device of the estimator as PyTorch names it, such as "cuda"; None for the CPU, or
            the device of a loaded model. That another device decodes the file is not promised.

    Returns:
        The bytes of the file.

    Raises:
        ValueError: the array has another type or shape, there is no such model or device, or
            `steps` is not a whole number of 1 or more.
    """
    picture = from_array(array)
    with on_device(device):
        (compressed,) = compress_each([picture], model, steps)
    return compressed.to_file()


def decompress(
    data: bytes,
    model: str | Path | Model | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    max_work: float | None = None,
    region: Region | None = None,
    partial: bool = False,
    device: str | torch.device | None = None,
) -> np.ndarray:
    """Decompress a file of one picture to the samples that were given to `compress`.

    Args:
        data: the bytes of the file.
        model: the model that made the file, its name or the path of its file; None to find it among
            the installed models.
        max_pixels: maximum number of pixels; larger pictures are refused.
        max_work: maximum work of decoding, in the units of `Network.work`; None for 2^18, plus 2^8
            for each byte of the coded picture.
        region: left, top, width and height in pixels of the region to return; None for the whole
            picture. Of a picture of more than 2^20 pixels that the estimator coded, only the parts
            that the region overlaps are decoded, and no checksum covers them.
        partial: accept a file of the estimator that ends early. The array is then the picture as it
            is expected after the last step that the file holds whole, uint8 (H, W, 3). No checksum
            covers it.
        device: device of the estimator, as for `compress`.

    Returns:
        uint8 or uint16, the array; samples of shape (H, W, 1) come back as (H, W).

    Raises:
        ValueError: the file is damaged, the picture exceeds a limit or does not contain the region,
            or the file was made with another model or one that is not installed.
        OSError: the process that decodes JPEG XL and JPEG can't be started.
    """
    with on_device(device):
        return from_file(data, model, max_pixels, max_work, region, partial).samples


def compress_jpeg(data: bytes) -> bytes:
    """Compress a JPEG file so that `decompress_jpeg` gives the same file back.

    Args:
        data: the bytes of a JPEG file of 8-bit grey or colour.

    Returns:
        The bytes of the file; `decompress` gives the decoded pixels.

    Raises:
        ValueError: it is not such a file, or it is damaged.
        OSError: the process that decodes JPEG XL can't be started.
    """
    return pack(bytes(8), jpeg.encode(read(file_bytes(data), whole_jpeg=True)))


def decompress_jpeg(data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS) -> bytes:
    """Decompress the JPEG file that was given to `compress_jpeg`, bit for bit.

    Args:
        data: the bytes of the compressed file.
        max_pixels: maximum number of pixels; larger pictures are refused.

    Raises:
        ValueError: the file is damaged, holds no JPEG file, or the picture exceeds the limit.
        OSError: the process that decodes JPEG XL can't be started.
    """
    _, record = unpack(file_bytes(data), whole_number("max_pixels", max_pixels))
    return jpeg.file_of(record)


def compress_many(
    arrays: Sequence[np.ndarray],
    model: str | Path | Model | None = None,
    steps: int | None = None,
    device: str | torch.device | None = None,
) -> list[bytes]:
    """Compress pictures into files of one picture each; those of equal size are coded together.

    Args:
        arrays: pictures as for `compress`; or one array with a further axis in front.
        model: as for `compress`.
        steps: as for `compress`.
        device: as for `compress`.

    Returns:
        The same bytes as `compress` of each of them.

    Raises:
        ValueError: as `compress`.
    """
    pictures = [from_array(array) for array in several("arrays", arrays)]
    with on_device(device):
        return [each.to_file() for each in compress_each(pictures, model, steps)]


def decompress_many(
    files: Sequence[bytes],
    model: str | Path | Model | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    max_work: float | None = None,
    device: str | torch.device | None = None,
) -> list[np.ndarray]:
    """Decompress files of one picture each; those of equal size and model are decoded together.

    Args:
        files: the bytes of each file.
        model: as for `decompress`.
        max_pixels: maximum number of pixels of each picture.
        max_work: maximum work of each picture, as for `decompress`.
        device: device of the estimator, as for `compress`.

    Returns:
        The array of each file.

    Raises:
        ValueError, OSError: as `decompress`.
    """
    most, most_work = whole_number("max_pixels", max_pixels), limit("max_work", max_work)
    contents = [unpack(file_bytes(data), most) for data in several("files", files)]
    arrays: dict[int, np.ndarray] = {}
    with on_device(device):
        chosen = loaded(model)
        for model_hash in dict.fromkeys(model_hash for model_hash, _ in contents):
            members = [i for i, (other, _) in enumerate(contents) if other == model_hash]
            records = [contents[member][1] for member in members]
            needed = model_for(model_hash, records, chosen)
            pictures = decompress_records(records, needed, max_work=most_work)
            arrays.update(zip(members, (picture.samples for picture in pictures), strict=True))
    return [arrays[member] for member in range(len(contents))]


def bits(
    images: np.ndarray,
    model: str | Path | Model | None = None,
    steps: int | None = None,
    per_pixel: bool = False,
    device: str | torch.device | None = None,
) -> float | np.ndarray:
    """The bits that the estimator takes for images, without coding them.

    The stream differs by at most a byte and four bytes per million sub-pixels; a file has about 30
    bytes more, and up to 109 more if the image leaves many levels unused, or up to 781 more if it
    is toned, as in sepia. Images of more than 2^20 pixels are coded in parts, as by `compress`, of
    which each takes two to three bytes more for each step.

    Args:
        images: uint8 (H, W, 3), or a batch (B, H, W, 3).
        model: a model, its name or the path of its file; None as for `compress`.
        steps: number of steps; None for the model's default. The number of pixels is its upper
            bound.
        per_pixel: return the bits of each pixel, without those of the base code.
        device: device of the estimator, as for `compress`.

    Returns:
        The bits of the image; of a batch, float64 (B,). With `per_pixel`, float64 (H, W) or
        (B, H, W).

    Raises:
        ValueError: the images have another type or shape, there is no such model, or `steps` is not
            a whole number of 1 or more.
    """
    if not isinstance(images, np.ndarray) or images.ndim not in (3, 4) or not images.size:
        shape = getattr(images, "shape", type(images).__name__)
        raise ValueError(f"expected uint8 (H, W, 3) or (B, H, W, 3), not empty; got {shape}")
    if steps is not None:
        steps = whole_number("steps", steps)
    from italic.compressor import parts

    pixels = images.shape[-3] * images.shape[-2]
    with on_device(device):
        chosen = loaded(model or model_for_pixels(pixels))
    assert chosen is not None
    number = min(steps or chosen.steps, pixels)
    batch = images if images.ndim == 4 else images[None]
    side = parts.part_side(*batch.shape[1:3])

    def counted(mains: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bits of the pixels of main pictures, and of their base codes."""
        if side:
            return parts.bits(mains, chosen, number, side)
        return chosen.codec(number).bits(mains)

    of_pixels, of_bases = counted(batch)
    for place, image in enumerate(batch):
        for ranks, _ in forms(Colour.RGB, image, ())[1:]:
            pixels_of, base_of = counted(ranks[None])
            if pixels_of.sum() + base_of[0] < of_pixels[place].sum() + of_bases[place]:
                of_pixels[place], of_bases[place] = pixels_of[0], base_of[0]
    found = of_pixels if per_pixel else of_pixels.sum(axis=(1, 2)) + of_bases
    if images.ndim == 4:
        return found
    return found[0] if per_pixel else float(found[0])

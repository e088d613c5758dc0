"""Photographs as people alter them: bits of a model beside JPEG XL.

python benchmarks/alterations.py FOLDER --models photo
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import imagecodecs
import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps

import italic


def main() -> None:
    """Print a line for each alteration: sums of bytes of JPEG XL, and shares of the models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="photographs")
    parser.add_argument("--models", nargs="+", default=["photo"])
    parser.add_argument("--only", nargs="+", choices=ALTERATIONS, default=list(ALTERATIONS))
    parser.add_argument("--side", type=int, default=256, help="of the central crop in pixels")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--every", type=int, default=1, help="take every n-th photograph")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    paths = sorted(arguments.folder.iterdir())[:: arguments.every]
    photographs = [Image.open(path).convert("RGB") for path in paths]
    print(
        "| alteration | JPEG XL, bytes |", *(f"{model}, of JPEG XL |" for model in arguments.models)
    )
    for name in arguments.only:
        rows = []
        for photograph in photographs:
            image = np.asarray(ALTERATIONS[name](central(photograph, arguments.side)))
            bits = [float(italic.bits(image, model, arguments.steps)) for model in arguments.models]
            rows.append([jpeg_xl(image), *(total / 8 for total in bits)])
        jpeg_xl_bytes, *sums = np.sum(rows, axis=0)
        shares = (f"{total / jpeg_xl_bytes:.3f} |" for total in sums)
        print(f"| {name} | {jpeg_xl_bytes:.0f} |", *shares, flush=True)


def central(photograph: Image.Image, side: int) -> Image.Image:
    """The central part of a photograph, at most side × side pixels."""
    width, height = (min(side, length) for length in photograph.size)
    left, top = (photograph.width - width) // 2, (photograph.height - height) // 2
    return photograph.crop((left, top, left + width, top + height))


def jpeg_xl(image: np.ndarray) -> int:
    """Bytes of JPEG XL, the smaller file of efforts 7 and 9; of grey images as grey."""
    if (image == image[..., :1]).all():
        image = np.ascontiguousarray(image[..., 0])
    return min(
        len(imagecodecs.jpegxl_encode(image, lossless=True, effort=effort)) for effort in (7, 9)
    )


def grey(image: Image.Image) -> Image.Image:
    """Luminance."""
    return image.convert("L").convert("RGB")


def sepia(image: Image.Image) -> Image.Image:
    """Colours that are multiples of the luminance."""
    return ImageOps.colorize(image.convert("L"), "black", (255, 217, 166))


def automatic_contrast(image: Image.Image) -> Image.Image:
    """Levels of each colour stretched, half a per cent of the pixels clipped on either side."""
    return ImageOps.autocontrast(image, cutoff=0.5)


def brighter(image: Image.Image) -> Image.Image:
    """A gamma curve."""
    return image.point([round(255 * (level / 255) ** 0.6) for level in range(256)] * 3)


def cut_out(image: Image.Image) -> Image.Image:
    """White instead of the brighter half."""
    smooth = np.asarray(image.convert("L").filter(ImageFilter.GaussianBlur(3)))
    pixels = np.array(image)
    pixels[smooth > np.median(smooth)] = 255
    return Image.fromarray(pixels)


def from_jpeg(quality: int) -> Callable[[Image.Image], Image.Image]:
    """Pixels of a JPEG file with chroma subsampling."""

    def decoded(image: Image.Image) -> Image.Image:
        file = BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file).convert("RGB")

    return decoded


def enlarged(image: Image.Image) -> Image.Image:
    """A central part of 2/3 of the side, enlarged."""
    width, height = image.size
    box = (width // 6, height // 6, width - width // 6, height - height // 6)
    return image.resize(image.size, Image.Resampling.BICUBIC, box)


ALTERATIONS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "none": lambda image: image,
    "grey": grey,
    "sepia": sepia,
    "automatic contrast": automatic_contrast,
    "brighter": brighter,
    "sharpened": lambda image: image.filter(ImageFilter.UnsharpMask(2, 150, 0)),
    "enlarged": enlarged,
    "cut out": cut_out,
    "JPEG 90": from_jpeg(90),
    "JPEG 75": from_jpeg(75),
}

if __name__ == "__main__":
    main()

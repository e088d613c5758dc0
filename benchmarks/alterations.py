"""Photographs as they are altered in use: streams of a model beside files of JPEG XL.

Pictures that are toned or have many unused levels are coded in ranks too, see
`italic.coding.files.pictures.forms`. The chunk beside the ranks counts, the 30 bytes of a file do
not.

    python benchmarks/alterations.py FOLDER
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps

from italic.coding.files.container import Colour
from italic.coding.files.pictures import forms
from italic.coding.model_files.loading import load_model
from italic.coding.streams.codec import Codec
from italic.measuring.classical import CODECS

SUFFIXES = (".png", ".webp")
Alteration = Callable[[Image.Image], Image.Image]


def main() -> None:
    """Print a line for each alteration: bytes of JPEG XL, and shares of the model of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="photographs")
    parser.add_argument("--model", default="photo")
    parser.add_argument("--only", nargs="+", choices=ALTERATIONS, default=list(ALTERATIONS))
    parser.add_argument("--side", type=int, default=256, help="of the central crop in pixels")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--every", type=int, default=1, help="take every n-th photograph")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    codec = load_model(arguments.model).codec(arguments.steps)
    paths = [path for path in sorted(arguments.folder.iterdir()) if path.suffix in SUFFIXES]
    photographs = [Image.open(path).convert("RGB") for path in paths[:: arguments.every]]
    if not photographs:
        parser.error(f"{arguments.folder} has no files named *{' or *'.join(SUFFIXES)}")
    print("| alteration | JPEG XL, bytes | levels | ranks | smaller | pictures in ranks |")
    for name in arguments.only:
        rows = []
        for photograph in photographs:
            image = np.array(ALTERATIONS[name](central(photograph, arguments.side)))
            levels = ranks = stream_bytes(codec, image)
            for main, [(_, chunk)] in forms(Colour.RGB, image, ())[1:]:
                ranks = stream_bytes(codec, main) + len(chunk)
            rows.append([jpeg_xl(image), levels, ranks, min(levels, ranks), ranks < levels])
        total, *sums, count = np.sum(rows, axis=0)
        shares = " | ".join(f"{number / total:.3f}" for number in sums)
        print(f"| {name} | {total:.0f} | {shares} | {count:.0f} of {len(rows)} |", flush=True)


def stream_bytes(codec: Codec, image: np.ndarray) -> float:
    """Bytes of the stream of an image, uint8 (H, W, 3)."""
    return float(codec.bits(image[None])[0].sum()) / 8


def central(photograph: Image.Image, side: int) -> Image.Image:
    """The central part of a photograph, at most side × side pixels."""
    width, height = (min(side, length) for length in photograph.size)
    left, top = (photograph.width - width) // 2, (photograph.height - height) // 2
    return photograph.crop((left, top, left + width, top + height))


def jpeg_xl(image: np.ndarray) -> int:
    """Bytes of JPEG XL, the smaller file of efforts 7 and 9; of grey images as grey."""
    if (image == image[..., :1]).all():
        image = np.ascontiguousarray(image[..., 0])
    return min(len(CODECS[codec][0](image)) for codec in ("JPEG XL e7", "JPEG XL e9"))


def grey(image: Image.Image) -> Image.Image:
    """Luminance."""
    return image.convert("L").convert("RGB")


def sepia(image: Image.Image) -> Image.Image:
    """Colours that are multiples of the luminance."""
    return ImageOps.colorize(image.convert("L"), "black", (255, 217, 166))


def auto_contrast(image: Image.Image) -> Image.Image:
    """Levels of each colour stretched, half a per cent of the pixels clipped at either end."""
    return ImageOps.autocontrast(image, cutoff=0.5)


def gamma(image: Image.Image) -> Image.Image:
    """Brighter by a gamma curve."""
    return image.point([round(255 * (level / 255) ** 0.6) for level in range(256)] * 3)


def multiplied(red: float, green: float, blue: float) -> Alteration:
    """Levels multiplied by a factor for each colour, and clipped at 255."""
    table = [
        min(255, round(factor * level)) for factor in (red, green, blue) for level in range(256)
    ]
    return lambda image: image.point(table)


def cut_out(image: Image.Image) -> Image.Image:
    """White instead of the brighter half."""
    smooth = np.asarray(image.convert("L").filter(ImageFilter.GaussianBlur(3)))
    pixels = np.array(image)
    pixels[smooth > np.median(smooth)] = 255
    return Image.fromarray(pixels)


def from_jpeg(quality: int) -> Alteration:
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


ALTERATIONS: dict[str, Alteration] = {
    "none": lambda image: image,
    "grey": grey,
    "sepia": sepia,
    "auto-contrast": auto_contrast,
    "gamma 0.6": gamma,
    "levels × 1.03": multiplied(1.03, 1.03, 1.03),
    "levels × 1.1": multiplied(1.1, 1.1, 1.1),
    "red × 1.5": multiplied(1.5, 1, 1),
    "sharpened": lambda image: image.filter(ImageFilter.UnsharpMask(2, 150, 0)),
    "enlarged": enlarged,
    "cut out": cut_out,
    "JPEG 90": from_jpeg(90),
    "JPEG 75": from_jpeg(75),
}

if __name__ == "__main__":
    main()

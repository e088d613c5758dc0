"""Bytes of 16-bit pictures beside JPEG XL and PNG.

Photographs of a folder are scaled by an interpolation in floating point, so that all 16 bits are
used, and converted to linear light. Each is coded in colour and in grey. Prints a table, and writes
it as CSV:

    picture    name of the file, kind of samples
    italic     bytes of the file, after it was decoded and compared
    method     how it is coded: by the estimator with the low bytes in a chunk, or as a whole
    jpeg_xl_7  bytes of JPEG XL with effort 7
    jpeg_xl_9  bytes of JPEG XL with effort 9
    png        bytes of PNG
    above_%    excess of the file over the smallest of these

    python benchmarks/deep.py photos/validation --side 320 --scale 0.75
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

import italic
from italic.coding.files.container import unpack
from italic.measuring.classical import CODECS
from italic.measuring.results import write_table


def linear_light(path: Path, side: int, scale: float) -> np.ndarray:
    """A photograph in linear light, uint16 (H, W, 3), at most `side` pixels in a row."""
    with Image.open(path) as image:
        photograph = image.convert("RGB")
    photograph.thumbnail((round(side / scale), round(side / scale)))
    size = [round(scale * length) for length in photograph.size]
    channels = np.asarray(photograph, np.float32).transpose(2, 0, 1)
    scaled = [
        np.asarray(Image.fromarray(channel).resize(size, Image.Resampling.BICUBIC))
        for channel in channels
    ]
    value = np.stack(scaled, -1).clip(0, 255) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return np.round(65535 * linear).astype(np.uint16)


def main() -> None:
    """Code all photographs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--side", type=int, default=320, help="pixels")
    parser.add_argument("--scale", type=float, default=0.75, help="factor of the interpolation")
    parser.add_argument("--limit", type=int, default=8, help="number of photographs")
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_suffix(".csv"))
    arguments = parser.parse_args()
    rows = []
    for path in sorted(arguments.folder.iterdir())[: arguments.limit]:
        colour = linear_light(path, arguments.side, arguments.scale)
        for kind, samples in (("colour", colour), ("grey", colour[..., 1].copy())):
            rows.append({"picture": f"{path.stem} {kind}", **measured(samples)})
            print("  ".join(map(str, rows[-1].values())), flush=True)
    write_table(rows, arguments.csv)


def measured(samples: np.ndarray) -> dict[str, object]:
    """The row of a picture."""
    file = italic.compress(samples)
    assert np.array_equal(italic.decompress(file), samples)
    others = {
        "jpeg_xl_7": len(CODECS["JPEG XL e7"][0](samples)),
        "jpeg_xl_9": len(CODECS["JPEG XL e9"][0](samples)),
        "png": len(CODECS["PNG"][0](samples)),
    }
    method = unpack(file)[1].method.name
    excess = round(100 * (len(file) / min(others.values()) - 1), 2)
    return {"italic": len(file), "method": method, **others, "above_%": excess}


if __name__ == "__main__":
    main()

"""Which model for which size: bpsp of models on photographs reduced to several sizes.

The table is the basis of the entry `for` in the cards of the included models.

    python benchmarks/sizes.py FOLDER --models cifar10 photo
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import italic


def main() -> None:
    """Print a line for each size: the estimated bpsp of each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="photographs")
    parser.add_argument("--models", nargs="+", default=["cifar10", "photo"])
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 48, 64, 96, 128, 192])
    parser.add_argument("--steps", type=int, default=16)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    photographs = [Image.open(path).convert("RGB") for path in sorted(arguments.folder.iterdir())]
    print("longer side", *arguments.models)
    for side in arguments.sides:
        images = [reduced(photograph, side) for photograph in photographs]
        subpixels = sum(image.size for image in images)
        bits = {
            model: sum(float(italic.bits(image, model, arguments.steps)) for image in images)
            for model in arguments.models
        }
        print(f"{side:11d}", *(f"{total / subpixels:.4f}" for total in bits.values()), flush=True)


def reduced(photograph: Image.Image, side: int) -> np.ndarray:
    """A copy whose longer side has at most `side` pixels, uint8 (H, W, 3)."""
    copy = photograph.copy()
    copy.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(copy)


if __name__ == "__main__":
    main()

"""Gain in PSNR by the enhancement of BPG files of many qualities, by model and chroma format.

python benchmarks/enhancement.py FOLDER
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import numpy as np

from italic.coding.base_codes import bpg
from italic.coding.files.pictures import read
from italic.coding.model_files import model as model_files
from italic.compressor.enhancement import enhance

FIRST, SIDE = 100, 128  # first row and column, and side, of the part of a photograph that is used
EVERY = 5  # photographs of the folder from one that is used to the next


def main() -> None:
    """Print a line for each quality: mean and smallest gain in dB."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="photographs, PNG or WebP")
    parser.add_argument("--models", nargs="+", default=["cifar10_ladder"])
    parser.add_argument("--qps", type=int, nargs="+", default=list(range(10, 52, 2)))
    arguments = parser.parse_args()
    model_files.MAX_QP_DIFFERENCE, model_files.OTHER_CHROMA_QP = 51, 0  # nothing is refused
    files = sorted(path for path in arguments.folder.iterdir() if path.suffix in (".png", ".webp"))
    images = [
        np.ascontiguousarray(read(file).samples[FIRST:, FIRST:][:SIDE, :SIDE])
        for file in files[::EVERY]
    ]
    for qp in arguments.qps:
        columns = []
        for model, chroma in product(arguments.models, ("420", "444")):
            coded = [(image, bpg.encode(image, qp, chroma)) for image in images]
            gains = [
                psnr(enhance(data, model), image) - psnr(bpg.decode(data), image)
                for image, data in coded
            ]
            columns.append(f"{model} {chroma}: {np.mean(gains):+.2f} ({min(gains):+.2f})")
        print(f"qp {qp}  " + "  ".join(columns), flush=True)


def psnr(image: np.ndarray, original: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB."""
    return float(10 * np.log10(255**2 / np.mean((image.astype(float) - original) ** 2)))


if __name__ == "__main__":
    main()

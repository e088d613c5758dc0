"""Time to fill the cache of pairs, and speed of reading it.

Computes the BPG pairs of CIFAR-10 images by local processes and, with --ray, by workers of a local
Ray. Then reads batches with masks as training does.

    python benchmarks/pairs.py --images 60000 --qp 49 --ray 1 2
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from italic.coding.base_codes.base import BPG
from italic.datamodules.images import CIFAR10
from italic.datamodules.pairs import BaseCodes, make_pairs
from italic.datamodules.partitions import TrainingPartitions
from italic.datamodules.splits import Splits
from italic.datamodules.step_masks import StepMasks
from italic.measuring.results import write_table
from italic.schedule import Schedule


class Loaded:
    """Images in memory, the same for every split."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def load(self, _: str) -> np.ndarray:
        """All images, uint8 (N, H, W, 3)."""
        return self.images


def main() -> None:
    """Print a table and write it as CSV."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=3000, help="number of images, up to 60,000")
    parser.add_argument("--qp", type=int, default=49)
    parser.add_argument("--ray", type=int, nargs="*", default=[], help="numbers of Ray workers")
    parser.add_argument("--data-dir", default="data/cifar10")
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_suffix(".csv"))
    arguments = parser.parse_args()
    source = CIFAR10(arguments.data_dir)
    splits = [source.load(split) for split in ("train", "validation", "test")]
    images = np.concatenate(splits)[: arguments.images]
    rows = []
    for workers in arguments.ray:
        with tempfile.TemporaryDirectory() as cache:
            start = time.perf_counter()
            make_pairs(images, BPG(arguments.qp), cache, workers, ray="local")
            rows.append(row(f"make pairs, Ray's workers: {workers}", len(images), start))
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        pairs = make_pairs(images, BPG(arguments.qp), cache)
        rows.append(row("make pairs", len(pairs), start))
        for batch_size in (8, 64):
            bases = [BPG(arguments.qp)]
            data = StepMasks(
                Splits(Loaded(images), eval_limit=1),
                BaseCodes(bases, cache),
                TrainingPartitions(Schedule(), steps=16),
                batch_size=batch_size,
            )
            data.prepare_data()
            data.setup("fit")
            start = time.perf_counter()
            count = sum(len(batch.image) for batch in data.train_dataloader())
            rows.append(row(f"read batches of {batch_size} with masks", count, start))
    write_table(rows, arguments.csv)


def row(what: str, images: int, start: float) -> dict[str, object]:
    """Print and return the row of a task that started at a time."""
    seconds = time.perf_counter() - start
    print(f"{what:32} {seconds:8.2f} s {images / seconds:10.0f} images/s", flush=True)
    return {"what": what, "seconds": seconds, "images_per_s": images / seconds}


if __name__ == "__main__":
    main()

"""Time and memory of reading ImageNet at 64×64 pixels, with random files of the real size.

Writes pickled batch files, reads them as training does, first from the files and then from the
cache, and encodes some of the images with a base code.

    python benchmarks/imagenet.py --images 100000 --files 3
"""

from __future__ import annotations

import argparse
import pickle
import resource
import tempfile
import time
from multiprocessing import Process
from pathlib import Path

import numpy as np

from italic.coding.base_codes.base import BPG
from italic.datamodules.images import DownsampledImageNet
from italic.datamodules.pairs import make_pairs
from italic.measuring.results import write_table


def write(path: Path, shape: tuple[int, int]) -> None:
    """Write a batch file of random images."""
    data = np.random.default_rng().integers(0, 256, shape, dtype=np.uint8)
    with open(path, "wb") as file:
        pickle.dump({"data": data, "labels": list(range(shape[0]))}, file, protocol=4)


def main() -> None:
    """Print a table and write it as CSV."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=128_117, help="images per training file")
    parser.add_argument("--files", type=int, default=10, help="training files, at most 10")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=2000, help="images to encode as base codes")
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_suffix(".csv"))
    arguments = parser.parse_args()
    DownsampledImageNet.FILES["train"] = DownsampledImageNet.FILES["train"][: arguments.files]
    rows = []
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for name in DownsampledImageNet.FILES["train"]:
            shape = arguments.images, 3 * arguments.size**2
            # In a separate process, so that its memory is not measured.
            writer = Process(target=write, args=(Path(folder) / name, shape))
            writer.start()
            writer.join()
        source = DownsampledImageNet(folder, arguments.size, cache_dir=f"{folder}/kept")
        for what in ("read the files", "open the cache"):
            start = time.perf_counter()
            images = source.load("train")
            seconds = time.perf_counter() - start
            rows.append({"what": what, "images": len(images), "seconds": seconds})
        images = images[: arguments.pairs]
        start = time.perf_counter()
        make_pairs(images, BPG(49), f"{folder}/pairs")
        seconds = time.perf_counter() - start
        rows.append({"what": "make pairs", "images": len(images), "seconds": seconds})
    for row in rows:
        print(f"{row['what']:16} {row['images']:8} images {row['seconds']:8.2f} s")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    file_size = arguments.images * 3 * arguments.size**2 / 2**30
    print(f"largest memory {memory:.2f} GiB, with files of {file_size:.2f} GiB")
    write_table(rows, arguments.csv)


if __name__ == "__main__":
    main()

"""Cost of exact inference: bits of the float and the exact network, coded bytes, and time.

Measures each number of steps on test images of a run. Prints a table and writes it as CSV:

    float, exact        bpsp estimated by the trained and the exact network, without the base code
    coded               bpsp of the streams
    loss                increase from float to exact in percent
    over float          time of the exact network relative to the float network

    python benchmarks/codec.py RUN_DIR --images 1000 --batch 64
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from italic import run_directory
from italic.coding.exact import exact_arithmetic
from italic.coding.streams.codec import Codec
from italic.measuring.curve import Estimate
from italic.measuring.results import write_table
from italic.training import experiment
from italic.training.export import exported


def main() -> None:
    """Measure each number of steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run directory of train.py")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_suffix(".csv"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = exported(arguments.run)
    untouched = experiment.load_network(arguments.run)
    source = experiment.build_images(run_directory.read_config(arguments.run))
    images = source.load("test")[: arguments.images]
    rows = []
    for steps in arguments.steps:
        codec = model.codec(steps)
        row = measured(codec, untouched, images, arguments.batch)
        rows.append({"steps": steps, **{name: round(value, 5) for name, value in row.items()}})
        if len(rows) == 1:
            print("  ".join(f"{name:>9}" for name in rows[0]))
        print("  ".join(f"{value:9g}" for value in rows[-1].values()), flush=True)
    write_table(rows, arguments.csv)


def measured(
    codec: Codec, untouched: torch.nn.Module, images: np.ndarray, batch: int
) -> dict[str, float]:
    """The row for a number of steps."""
    sums: Counter[str] = Counter()
    exact_network = codec.network
    for start in range(0, len(images), batch):
        rows = images[start : start + batch]
        for name, network in (("float", untouched), ("exact", exact_network)):
            codec.network = network
            estimate = Estimate(len(rows), rows[0, ..., 0].size)
            coded = codec.encode(rows, estimate)
            sums[name] += estimate.maps.sum()
        sums["coded"] += sum(8 * len(item.stream) for item in coded)
    sample = images[:batch]
    ratio = network_seconds(exact_network, sample) / network_seconds(untouched, sample)
    return {
        **{name: bits / images.size for name, bits in sums.items()},
        "loss": 100 * (sums["exact"] / sums["float"] - 1),
        "over float": ratio,
    }


@torch.inference_mode()
def network_seconds(network: torch.nn.Module, images: np.ndarray, repeats: int = 7) -> float:
    """Median time of one application to a batch in which a third of the pixels is known."""
    image = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    known = (torch.arange(image[0, 0].numel()) % 3 == 0).float().view(1, 1, *image.shape[2:])
    known = known.expand(len(image), -1, -1, -1)
    times = []
    with exact_arithmetic():
        for _ in range(repeats + 1):
            begin = time.perf_counter()
            network(image, torch.full_like(image, 128), known)
            times.append(time.perf_counter() - begin)
    return float(np.median(times[1:]))


if __name__ == "__main__":
    main()

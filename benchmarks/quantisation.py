"""Cost of 8-bit operands: bpsp of the exact and of the float network of a run, on the same images.

The bits are those of the likelihood, without the entropy coder. Prints a table.

    python benchmarks/quantisation.py RUN_DIR --images 1000 --steps 4 16 64
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from italic import run_directory
from italic.coding.streams.codec import Codec
from italic.measuring.curve import Estimate
from italic.models.network import Network
from italic.schedule import Schedule
from italic.training import experiment, named_code
from italic.training.export import exported

BATCH = 64


def main() -> None:
    """Estimate the images with both networks in each number of steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run directory of train.py")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cfg = run_directory.read_config(options.run)
    named_code.check_code(cfg)
    model = exported(options.run)
    floating = experiment.load_network(options.run).eval()
    images = experiment.build_images(cfg).load(options.split)[: options.images]
    print(f"{len(images)} {options.split} images\n\nsteps  float   exact   difference")
    for steps in options.steps:
        codec = model.codec(steps)
        rates = [
            bpsp(network, codec, model.recipe.schedule, images)
            for network in (floating, model.network)
        ]
        print(f"{steps:5d}  {rates[0]:.4f}  {rates[1]:.4f}  {rates[1] / rates[0] - 1:+.2%}")


def bpsp(network: Network, of_model: Codec, schedule: Schedule, images: np.ndarray) -> float:
    """bpsp of the likelihood and the base codes, with the steps of the model's codec."""
    codec = Codec(network, of_model.base, schedule, of_model.steps, of_model.rung)
    bits = 0.0
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        estimate = Estimate(len(batch), batch[0, ..., 0].size)
        coded = codec.encode(batch, estimate)
        bits += estimate.maps.sum() + 8 * sum(len(item.base) for item in coded)
    return bits / images.size


if __name__ == "__main__":
    main()

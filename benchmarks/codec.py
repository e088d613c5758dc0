"""What coding costs: bits of the float and the exact network, coded bytes, and where time goes.

For each number of steps, on test images of a run, in batches. Prints a table and writes it as CSV:

    float, exact        bpsp that the trained and the exact network estimate, base code left out
    coded               bpsp of the streams
    loss                of exact over float, in percent
    encode, decode      ms an image
    network, coder      shares of the decoding time in percent: the exact network; integer
                        parameters, probabilities and rANS; the rest is base code and bookkeeping
    over float          time of the exact network over that of the float one

    python benchmarks/codec.py RUN_DIR --images 1000 --batch 64
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from italic import experiment
from italic.coding import codec as codec_module
from italic.coding.codec import Codec
from italic.coding.entropy import Reader
from italic.coding.exact import exact_arithmetic
from italic.evaluation.curve import Estimate
from italic.evaluation.results import write_table
from italic.export import exported


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
    source = experiment.build_images(experiment.read_config(arguments.run))
    images = source.load("test")[: arguments.images]
    rows = []
    for steps in arguments.steps:
        codec = model.codec(steps)
        codec.decode(codec.encode(images[:2]), *images.shape[1:3])  # compiles the coder
        row = measured(codec, untouched, images, arguments.batch)
        rows.append({"steps": steps, **{name: round(value, 5) for name, value in row.items()}})
        if len(rows) == 1:
            print("  ".join(f"{name:>9}" for name in rows[0]))
        print("  ".join(f"{value:9g}" for value in rows[-1].values()), flush=True)
    write_table(rows, arguments.csv)


def measured(
    codec: Codec, untouched: torch.nn.Module, images: np.ndarray, batch: int
) -> dict[str, float]:
    """One row."""
    sums: Counter[str] = Counter()
    exact_network = codec.network
    height, width = images.shape[1:3]
    for start in range(0, len(images), batch):
        rows = images[start : start + batch]
        for name, network in (("exact", exact_network), ("float", untouched)):
            codec.network = network
            estimate = Estimate(len(rows), height * width)
            begin = time.perf_counter()
            coded = codec.encode(rows, estimate)
            sums[f"{name} seconds"] += time.perf_counter() - begin - estimate.seconds
            sums[name] += estimate.maps.sum()
            if name == "exact":
                streams = coded
        codec.network = exact_network
        sums["coded"] += sum(8 * len(item.stream) for item in streams)
        with timed(codec, sums):
            begin = time.perf_counter()
            decoded = codec.decode(streams, height, width)
            sums["decode"] += time.perf_counter() - begin
        assert np.array_equal(decoded, rows)
    sample = images[:batch]
    ratio = network_seconds(exact_network, sample) / network_seconds(untouched, sample)
    count = images.size
    return {
        "float": sums["float"] / count,
        "exact": sums["exact"] / count,
        "coded": sums["coded"] / count,
        "loss": 100 * (sums["exact"] / sums["float"] - 1),
        "encode": 1e3 * sums["exact seconds"] / len(images),
        "decode": 1e3 * sums["decode"] / len(images),
        "network": 100 * sums["network"] / sums["decode"],
        "coder": 100 * sums["coder"] / sums["decode"],
        "over float": ratio,
    }


class timed:
    """Adds up the seconds spent in the network and in the coder while a block runs."""

    def __init__(self, codec: Codec, sums: Counter[str]) -> None:
        self.codec, self.sums = codec, sums

    def __enter__(self) -> None:
        """Put stop-watches around both."""
        self.originals = self.codec.network.forward, codec_module.integer_parameters, Reader.code
        forward, parameters, code = self.originals
        self.codec.network.forward = self._around("network", forward)
        codec_module.integer_parameters = self._around("coder", parameters)  # type: ignore[assignment]
        Reader.code = self._around("coder", code)  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        """Take them away."""
        self.codec.network.forward = self.originals[0]
        codec_module.integer_parameters = self.originals[1]
        Reader.code = self.originals[2]  # type: ignore[method-assign]

    def _around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            result = call(*arguments, **options)
            self.sums[name] += time.perf_counter() - begin
            return result

        return watched


@torch.inference_mode()
def network_seconds(network: torch.nn.Module, images: np.ndarray, repeats: int = 7) -> float:
    """Median time of one application to a batch, a third of the pixels known."""
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

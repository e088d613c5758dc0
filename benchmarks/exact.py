"""Reproducibility of streams across configurations, for the exact and the float network.

Codes test images with the exact model of a run and with its float network in many configurations of
batch size, threads, memory layout, instruction sets and libraries. Each configuration runs in a
separate process. Each one compares its streams with those of the first configuration and also
decodes those. Prints a table and writes it as CSV:

    identical   streams that are equal to those of the first configuration
    decoded     streams of the first configuration that are decoded correctly in this one

    python benchmarks/exact.py RUN_DIR --images 200 --steps 1 8 32
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from italic.measuring.results import write_table

LIBRARIES: list[dict[str, str]] = [
    {},
    {"ATEN_CPU_CAPABILITY": "default"},
    {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    {"ONEDNN_MAX_CPU_ISA": "AVX"},
    {"MKL_CBWR": "COMPATIBLE"},
    {"MKL_CBWR": "AVX2", "ATEN_CPU_CAPABILITY": "default"},
]
CONFIGURATIONS: list[dict[str, Any]] = [
    *(
        {"batch": batch, "threads": threads, "environment": environment}
        for environment, (batch, threads) in itertools.product(LIBRARIES, [(64, 1), (1, 2), (7, 1)])
    ),
    {"batch": 64, "threads": 2, "environment": {}},
    {"batch": 16, "threads": 1, "environment": {}, "layout": "contiguous"},
    {"batch": 16, "threads": 1, "environment": {}, "library": "oneDNN off"},
    {"batch": 16, "threads": 1, "environment": {}, "library": "compiled"},
    # The implementation of int8 products, selected without the probe.
    {"batch": 64, "threads": 1, "environment": {"ITALIC_PRODUCTS": "float32"}},
    {"batch": 7, "threads": 2, "environment": {"ITALIC_PRODUCTS": "float32"}},
]


def main() -> None:
    """Run every configuration and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run directory of train.py")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--kinds", nargs="+", default=["exact", "float"])
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_suffix(".csv"))
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.run, json.loads(arguments.work))
        return

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, steps in itertools.product(arguments.kinds, arguments.steps):
            for number, configuration in enumerate(CONFIGURATIONS):
                task = {
                    **configuration,
                    "kind": kind,
                    "steps": steps,
                    "images": arguments.images,
                    "reference": f"{folder}/{kind}-{steps}",
                    "first": number == 0,
                }
                environment = {
                    **os.environ,
                    "OMP_NUM_THREADS": str(task["threads"]),
                    "OMP_WAIT_POLICY": "passive",
                    **task["environment"],
                }
                command = [sys.executable, __file__, str(arguments.run), "--work", json.dumps(task)]
                done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
                counts = json.loads(done.stdout.splitlines()[-1])
                if counts is None:
                    continue
                identical, decoded = counts
                settings = [f"{key}={value}" for key, value in task["environment"].items()]
                settings += [task[key] for key in ("layout", "library") if key in task]
                row = {
                    "kind": kind,
                    "steps": steps,
                    "batch": task["batch"],
                    "threads": task["threads"],
                    "setting": " ".join(settings) or "as installed",
                    "images": arguments.images,
                    "identical": identical,
                    "decoded": decoded,
                }
                rows.append(row)
                print("  ".join(f"{value!s:>7}" for value in row.values()), flush=True)
    write_table(rows, arguments.csv)
    exact = [row for row in rows if row["kind"] == "exact"]
    sys.exit(any(row["identical"] + row["decoded"] < 2 * row["images"] for row in exact))


def work(run: Path, task: dict[str, Any]) -> None:
    """In a separate process: code and decode; print the numbers of identical and decoded streams.

    Prints null if the configuration does not apply.
    """
    import torch

    from italic import run_directory
    from italic.coding.streams.codec import Coded
    from italic.training import experiment
    from italic.training.export import exported

    torch.set_num_threads(task["threads"])
    model = exported(run)
    codec = model.codec(task["steps"])
    if task["kind"] == "float":
        codec.network = experiment.load_network(run)
    if task.get("layout") == "contiguous":
        codec.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    if task.get("library") == "oneDNN off":
        torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    if task.get("library") == "compiled":
        if task["kind"] == "exact" and codec.network.arithmetic == "int8":
            print(json.dumps(None))  # torch.compile does not support the kernels of its layers
            return
        codec.network.compile()
    images = experiment.build_images(run_directory.read_config(run)).load("test")[: task["images"]]
    batches = [images[i : i + task["batch"]] for i in range(0, len(images), task["batch"])]
    streams = [(item.base, item.stream) for batch in batches for item in codec.encode(batch)]
    reference = Path(task["reference"])
    if task["first"]:
        reference.write_bytes(pickle.dumps(streams))
    expected = pickle.loads(reference.read_bytes())
    identical = sum(one == other for one, other in zip(streams, expected, strict=True))
    decoded, start = 0, 0
    for batch in batches:
        coded = [Coded(*item) for item in expected[start : start + len(batch)]]
        start += len(batch)
        decoded += decodable(codec, coded, batch)
    print(json.dumps([identical, decoded]))


def decodable(codec: Any, coded: list[Any], images: np.ndarray) -> int:
    """Number of images of a batch that are decoded correctly.

    A stream that can't be decoded makes its batch fail; each stream is then decoded separately.
    """
    height, width = images.shape[1:3]
    try:
        decoded = codec.decode(coded, height, width)
        return int((decoded == images).all((1, 2, 3)).sum())
    except ValueError:
        if len(coded) == 1:
            return 0
        pairs = zip(coded, images, strict=True)
        return sum(decodable(codec, [one], image[None]) for one, image in pairs)


if __name__ == "__main__":
    main()

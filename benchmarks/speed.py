"""Speed of training and coding, and a breakdown of the decoding time.

Each row is measured in a separate process, or in several at once, of which the slowest is reported:
the command line codes many pictures in one process per core with one thread each. Prints two
tables and writes them as CSV, NAME-training.csv and NAME-coding.csv:

    images/s            training speed of a preset, including batches, optimiser and averaging
    encode, decode 1    ms per image, coded alone; the other columns are in a batch
    encode, decode MB/s MB of pixels per second, three bytes each, in a batch
    images/s            images decoded per second in a batch, by all processes together
    base to other       percentages of the time of decoding a batch: base codes, network,
                        quantisation of its mixtures, probabilities and range coder, other
    MiB                 peak memory of the process

    python benchmarks/speed.py --model cifar10 --threads 1
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np

from italic.measuring.results import write_table

if TYPE_CHECKING:  # imports that a row does not need would increase its memory
    from italic.coding.streams.codec import Codec

WARM_UP = 3  # training steps


def main() -> None:
    """Measure each row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="name or path; default: the default model")
    parser.add_argument("--steps", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--batch", type=int, default=64, help="images coded together")
    parser.add_argument("--repeats", type=int, default=5, help="timings; the best is reported")
    parser.add_argument("--experiment", default="cifar10_cpu", help="preset of the training steps")
    parser.add_argument("--precisions", nargs="*", default=["bf16-mixed", "32-true"])
    parser.add_argument("--training-steps", type=int, default=50, help="the median is reported")
    parser.add_argument("--data", default="data/cifar10", help="photographs are used if absent")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1, help="number of concurrent processes")
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_suffix(".csv"))
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        table, setting = arguments.work
        measured = {"training": training, "coding": coding}[table]
        print(json.dumps(measured(setting, arguments)))
        return
    for table, settings in (("training", arguments.precisions), ("coding", arguments.steps)):
        rows = []
        for setting in settings:
            command = [sys.executable, *sys.argv, "--work", table, str(setting)]
            count = arguments.processes if table == "coding" else 1
            started = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(count)]
            outputs = [process.communicate()[0] for process in started]
            if any(process.returncode for process in started):
                sys.exit(f"{' '.join(command)} failed")
            measured_rows = [json.loads(text.splitlines()[-1]) for text in outputs]
            rows.append(min(measured_rows, key=lambda row: row["images/s"]))
            if len(rows) == 1:
                print("  ".join(f"{name:>11}" for name in rows[0]))
            print("  ".join(f"{value!s:>11}" for value in rows[-1].values()), flush=True)
        if rows:
            write_table(rows, arguments.csv.with_stem(f"{arguments.csv.stem}-{table}"))


def training(precision: str, arguments: argparse.Namespace) -> dict[str, object]:
    """The training row for a precision."""
    import logging

    import pytorch_lightning as pl
    import torch
    from hydra import compose, initialize
    from omegaconf import OmegaConf
    from pairs import Loaded
    from pytorch_lightning.callbacks import LambdaCallback, WeightAveraging

    from italic.config import register
    from italic.training import experiment
    from italic.training.callbacks import moving_average

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(arguments.threads)
    register()
    overrides = [f"experiment={arguments.experiment}", "base=none"]
    with initialize("../conf", version_base="1.3"):
        cfg = compose("train", [*overrides, f"trainer.precision={precision}"])
    pl.seed_everything(cfg.seed, verbose=False)
    data = experiment.build_datamodule(cfg)
    data.images = replace(data.images, source=Loaded(load_images(arguments.data)))
    settings = dict(OmegaConf.to_container(cfg.trainer, resolve=True))  # type: ignore[arg-type]
    settings |= {"max_steps": WARM_UP + arguments.training_steps + 1, "max_time": None}
    settings |= {"limit_val_batches": 0, "logger": False, "enable_checkpointing": False}
    settings |= {"enable_progress_bar": False, "enable_model_summary": False}
    average = moving_average(cfg.training.average_decay)
    times: list[float] = []
    clock = LambdaCallback(on_train_batch_start=lambda *_: times.append(time.perf_counter()))
    callbacks = [WeightAveraging(use_buffers=False, multi_avg_fn=average), clock]
    trainer = pl.Trainer(**settings, callbacks=callbacks)
    trainer.fit(experiment.build_estimator(cfg), data)
    return {
        "experiment": arguments.experiment,
        "precision": precision,
        "batch": data.batch_size,
        "images/s": round(data.batch_size / np.median(np.diff(times[WARM_UP:])), 1),
        "MiB": memory(),
    }


def coding(steps: str, arguments: argparse.Namespace) -> dict[str, object]:
    """The coding row for a number of steps."""
    import torch

    from italic.coding.model_files.loading import load_model

    torch.set_num_threads(arguments.threads)
    codec = load_model(arguments.model).codec(int(steps))
    images = load_images(arguments.data)[: arguments.batch]
    codec.decode(codec.encode(images[:1]), *images.shape[1:3])  # warm-up: compiles the coder
    row: dict[str, object] = {"steps": int(steps)}
    for count in (1, len(images)):
        timings = [timed(codec, images[:count]) for _ in range(arguments.repeats)]
        encode = min(seconds for seconds, _ in timings)
        parts = min((parts for _, parts in timings), key=lambda parts: sum(parts.values()))
        decode = sum(parts.values())
        row |= {
            f"encode {count}": round(1e3 * encode / count, 2),
            f"decode {count}": round(1e3 * decode / count, 2),
        }
    return {
        **row,
        "encode MB/s": round(images.nbytes / 1e6 / encode, 3),
        "decode MB/s": round(images.nbytes / 1e6 / decode, 3),
        "images/s": round(arguments.processes * len(images) / decode, 1),
        **{name: round(100 * seconds / decode, 1) for name, seconds in parts.items()},
        "MiB": memory(),
    }


def timed(codec: Codec, images: np.ndarray) -> tuple[float, dict[str, float]]:
    """Time of encoding, and of the parts of decoding, in seconds."""
    begin = time.perf_counter()
    coded = codec.encode(images)
    encoded = time.perf_counter()
    with watched(codec) as parts:
        decoded = codec.decode(coded, *images.shape[1:3])
    parts["other"] = time.perf_counter() - encoded - sum(parts.values())
    assert np.array_equal(decoded, images)
    return encoded - begin, parts


@contextmanager
def watched(codec: Codec) -> Iterator[dict[str, float]]:
    """Measure the time of the parts of decoding inside the context, in seconds."""
    from italic.coding.streams import pixel_sources
    from italic.coding.streams.entropy import Reader

    network = codec.network
    places = {
        "base": (codec.base, "decode"),
        "network": (network, "raw" if hasattr(network, "raw") else "forward"),
        "likelihood": (pixel_sources, "integer_parameters"),
        "entropy": (Reader, "code"),
    }
    sums: dict[str, float] = dict.fromkeys(places, 0.0)

    def around(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def clocked(*arguments: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            result = call(*arguments, **options)
            sums[name] += time.perf_counter() - begin
            return result

        return clocked

    with ExitStack() as stack:
        for name, (owner, method) in places.items():
            clocked = around(name, getattr(owner, method))
            stack.enter_context(patch.object(owner, method, clocked))
        yield sums


def load_images(folder: str) -> np.ndarray:
    """CIFAR-10 images if present, otherwise tiles of photographs, uint8 (N, 32, 32, 3)."""
    from italic.datamodules.images import CIFAR10, Photos

    return (CIFAR10(folder) if Path(folder).is_dir() else Photos()).load("test")


def memory() -> int:
    """Peak memory of this process in MiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    main()

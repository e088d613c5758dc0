"""Speed of writing archives in shards by workers of Ray, and a test with a killed worker.

Writes CIFAR-10's training images as PNG files to a temporary folder, then runs `italic archive`
on them, without Ray and with each number of workers. Prints the number of names and sizes listed
per second, and a table, which it also writes as CSV:

    workers     workers of Ray; 0: without Ray, one file by one process with one thread
    seconds     time of the command, including decoding and comparison
    start       time of the same command with all shards present: Ray's start, the workers' imports
                and the check of the shards; without Ray, time for an archive of one image
    images/s    images per second in the difference of the two times
    CPU ms      CPU time for each image without the start; only without Ray
    bpsp        bits per sub-pixel of all files
    killed      whether a worker was killed half-way (--kill); the files must not differ

    python benchmarks/archive.py --images 2000 --workers 1 2 --kill
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from italic.atomic import TEMPORARY_SUFFIX
from italic.cli.messages import Errors
from italic.cli.shards import list_pictures
from italic.coding.files.container import ArchiveReader
from italic.datamodules.images import CIFAR10
from italic.measuring.results import write_table


def main() -> None:
    """Measure each number of workers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000, help="number of images, up to 50,000")
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--model", default="cifar10")
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--kill", action="store_true", help="add a run with a killed worker")
    parser.add_argument("--data-dir", default="data/cifar10")
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_suffix(".csv"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder, "pictures")
        write_pictures(pictures, arguments.data_dir, arguments.images)
        print(f"listing: {names_per_second(pictures):,.0f} names/s", flush=True)
        tasks = [(workers, False) for workers in arguments.workers]
        if arguments.kill:
            tasks.append((max(1, *arguments.workers), True))
        rows = []
        reference: dict[str, bytes] = {}  # files of the first run with Ray
        for number, (workers, kill) in enumerate(tasks):
            out = Path(folder, str(number))
            rows.append(measured(pictures, out, workers, kill, arguments))
            if len(rows) == 1:
                print("  ".join(f"{name:>8}" for name in rows[0]))
            print("  ".join(f"{value!s:>8}" for value in rows[-1].values()), flush=True)
            if workers:
                files = {path.name: path.read_bytes() for path in out.iterdir()}
                reference = reference or files
                check(pictures, out)
                if files != reference:
                    sys.exit(f"with {workers} workers the files differ")
    write_table(rows, arguments.csv)


def write_pictures(folder: Path, data_dir: str, images: int) -> None:
    """Write the first training images as PNG files, a thousand per folder."""
    source = CIFAR10(data_dir)
    all_of_them = np.concatenate([source.load("train"), source.load("validation")])
    for number, image in enumerate(all_of_them[:images]):
        path = folder / f"{number // 1000:02}" / f"{number:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def names_per_second(pictures: Path, repeats: int = 20) -> float:
    """Speed of listing the pictures, which the command does before it starts the workers."""
    start = time.process_time()
    with tempfile.TemporaryFile() as file:
        for _ in range(repeats):
            count = list_pictures(pictures, file, Errors())["pictures"]
    return repeats * count / (time.process_time() - start)


def measured(
    pictures: Path, out: Path, workers: int, kill: bool, arguments: argparse.Namespace
) -> dict[str, object]:
    """The row for a number of workers."""
    command = [sys.executable, "-m", "italic.cli", "archive", str(pictures), "-o", str(out)]
    command += ["--steps", str(arguments.steps), "--model", arguments.model]
    if workers:
        command += ["--shards", str(arguments.shards), "--jobs", str(workers)]
    before = cpu_seconds()
    seconds = timed(command, out if kill else None)
    cpu = cpu_seconds() - before
    if not workers:
        one = next(pictures.rglob("*.png"))
        (alone := out.with_name("alone")).mkdir()
        shutil.copy(one, alone)
        command[4:7] = [str(alone), "-o", f"{out}.alone"]
    start = timed(command, None)
    cpu -= cpu_seconds() - before - cpu
    files = [out] if out.is_file() else list(out.glob("*.italic"))
    bits = 8 * sum(file.stat().st_size for file in files)
    return {
        "workers": workers,
        "images": arguments.images,
        "steps": arguments.steps,
        "seconds": round(seconds, 1),
        "start": round(start, 1),
        "images/s": round(arguments.images / (seconds - start), 2),
        "CPU ms": "" if workers else round(1e3 * cpu / arguments.images, 2),
        "bpsp": round(bits / arguments.images / 3 / 32**2, 4),
        "killed": kill,
    }


def timed(command: list[str], kill_in: Path | None) -> float:
    """Time of a command in seconds; a worker is killed when a first shard is in `kill_in`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        if kill_in:
            while not any(kill_in.glob("*.italic")):
                time.sleep(0.05)
            kill_writer(kill_in, spared=process.pid)
    if process.returncode:
        sys.exit("the command failed")
    return time.perf_counter() - start


def kill_writer(folder: Path, spared: int, seconds: float = 120) -> None:
    """Wait for a process with an unfinished file open in a folder and kill it with SIGKILL.

    Args:
        folder: the folder.
        spared: number of the process that is not killed: the command, which writes the manifest.
        seconds: how long to wait.

    Raises:
        TimeoutError: there was no such process.
    """
    beginning = f"{folder.resolve()}/.italic-"
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for link in Path("/proc").glob("[0-9]*/fd/*"):
            if link.parts[2] == str(spared):
                continue
            try:
                target = os.readlink(link)
            except OSError:  # it was closed meanwhile, or belongs to another user
                continue
            if target.startswith(beginning) and target.endswith(TEMPORARY_SUFFIX):
                os.kill(int(link.parts[2]), signal.SIGKILL)
                return
        time.sleep(0.02)
    raise TimeoutError(f"nothing was written in {folder} for {seconds} seconds")


def check(pictures: Path, out: Path) -> None:
    """End the program unless each picture is in the shards exactly once."""
    names: list[str] = []
    for shard in json.loads((out / "manifest.json").read_bytes())["shards"]:
        with (out / shard["name"]).open("rb") as file:
            names += ArchiveReader(file).names
    expected = [path.relative_to(pictures).as_posix() for path in pictures.rglob("*.png")]
    if sorted(names) != sorted(expected):
        sys.exit(f"{len(names)} pictures in the shards, {len(expected)} in the folder")


def cpu_seconds() -> float:
    """CPU time of the child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()

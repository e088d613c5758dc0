"""Fuzzer: damages .italic, .bpg and model files in many ways and opens them.

Each case must raise a ValueError or give a picture, within limits of time and memory that depend on
the size in the file's header. In the layer `file`, whose checksums are not corrected, the picture
must be the original. Anything else is a failure: another exception, a crash of the process, a wrong
picture. Failures are printed with the bytes of the file, and the exit status is then 1. Cases run
in worker processes with a limited address space; for Linux. Prints a table and writes it as CSV:

    layer      the damaged part; CRCs and compression around it are corrected, except for file:
               file, record, stream, base (code), chunk (uncompressed), png (chunks), jpeg_xl
               (frames and transforms), index (of an archive, uncompressed), bpg (.bpg files),
               model (model files)
    damage     byte, cut: a byte changed, or the end removed, at each position; structure: fields
               and parts changed, see `tests/fuzzing/structures.py`; the others are random
    cases      number of cases, which ended as follows:
    refused    with a ValueError
    same       with the original picture
    other      with another picture, which only a checksum could detect
    too_large  out of memory, if the file claims a large size
    failed     with a failure
    slowest_s  maximum time of a case in seconds
    peak_MiB   maximum memory of a case beyond the memory of the process before it

    OMP_NUM_THREADS=1 python benchmarks/fuzz.py --cases 100000
    python benchmarks/fuzz.py --layers bpg base      # BPG files alone, and as base codes
    python benchmarks/fuzz.py --cases 100000 --damage structure
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # the checkout, for its tests

from italic.measuring.results import write_table
from tests.fuzzing.corpus import LAYERS, corpus
from tests.fuzzing.damage import DAMAGES, SYSTEMATIC, cases
from tests.fuzzing.workers import OUTCOMES, run


def main() -> None:
    """Run all cases and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=LAYERS)
    every = [*SYSTEMATIC, *DAMAGES, "claim", "structure"]
    parser.add_argument("--damage", nargs="+", choices=every, metavar="DAMAGE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_suffix(".csv"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # threads do not survive a fork

    with tempfile.TemporaryDirectory() as folder:
        layers = [layer for layer in corpus(Path(folder)) if layer.name in arguments.layers]
        todo = cases(layers, arguments.cases, arguments.seed, arguments.damage)
        results = run(layers, todo, arguments.workers)
    places = len(SYSTEMATIC) * sum(len(layer.data) for layer in layers)
    done = sum(case.position is not None for case in todo)
    print(f"{len(layers)} layers; {done} of all {places} changes of a byte and cuts")

    order = {name: place for place, name in enumerate((*LAYERS, *every))}
    rows = []
    for key in sorted(results, key=lambda key: [order[name] for name in key]):
        result = results[key]
        row = dict(zip(("layer", "damage"), key, strict=True))
        row |= {"cases": result.outcomes.total()}
        row |= {outcome: result.outcomes[outcome] for outcome in OUTCOMES}
        row |= {"slowest_s": round(result.seconds, 3), "peak_MiB": round(result.peak / 2**20, 1)}
        rows.append(row)
    total = {"layer": "all", "damage": ""}
    total |= {name: sum(row[name] for row in rows) for name in ("cases", *OUTCOMES)}
    rows.append(
        total | {name: max(row[name] for row in rows) for name in ("slowest_s", "peak_MiB")}
    )
    print("  ".join(f"{name:>9}" for name in rows[0]))
    for row in rows:
        print("  ".join(f"{value:>9}" for value in row.values()))
    write_table(rows, arguments.csv)

    failures = [failure for result in results.values() for failure in result.failures]
    for line, data in failures:
        print(f"FAILED {line}\n  {data.hex()}", file=sys.stderr)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()

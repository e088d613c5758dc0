"""What a command says about each file that it has written, and about all of them."""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from italic.cli.jobs import Job
from italic.cli.messages import shown
from italic.coding.files.container import Colour, Method
from italic.schedule import steps_text

if TYPE_CHECKING:
    from italic.cli.work import Decoded, Encoded

METHODS = {
    Method.ESTIMATOR: "estimator",
    Method.ESTIMATOR_PARTS: "estimator in parts",
    Method.RAW: "raw samples",
    Method.PNG: "PNG",
    Method.WEBP: "WebP",
    Method.JPEG_XL: "JPEG XL",
    Method.JPEG: "JPEG file as it is",
    Method.JPEG_TRANSCODED: "JPEG file by JPEG XL",
}
# Samples per pixel of the original; one for the kinds that are not listed.
SAMPLES = {Colour.RGB: 3, Colour.RGB16: 3, Colour.GREY_ALPHA: 2, Colour.GREY_ALPHA16: 2}
SAMPLES |= {Colour.RGB_ALPHA: 4, Colour.RGB_ALPHA16: 4}


class Reporting:
    """Prints a line for each file and a summary of several files, as text or as JSON.

    The keys of the JSON objects are described in docs/python.md.

    Args:
        args: options of the command.
        files: number of files to process; a summary follows if there are several.
    """

    def __init__(self, args: argparse.Namespace, files: int) -> None:
        self._quiet, self._json, self._several = args.quiet, args.json, files > 1
        self._start = time.perf_counter()
        self._files = self._before = self._after = 0
        self._methods: dict[Method, list[int]] = defaultdict(lambda: [0, 0])  # files, bytes

    def written(
        self, job: Job, size: int, coded: Encoded | None, decoded: Decoded | None = None
    ) -> None:
        """Report a file of `size` bytes, and how it was compressed or decompressed."""
        self._files += 1
        self._before += job.size
        self._after += size
        if coded is not None:
            counts = self._methods[coded.record.method]
            counts[0] += 1
            counts[1] += size
        if self._json:
            about = {
                "input": str(job.path),
                "output": str(job.target),
                "input_bytes": job.size,
                "output_bytes": size,
            }
            if decoded is not None and decoded.held is not None:
                about |= {"steps": decoded.steps, "steps_held": decoded.held}
            print(json.dumps(about | (_facts(coded, size) if coded else {})))
        elif not self._quiet:
            text = f"{shown(job)} → {shown(job.target)}: {job.size:,} → {size:,} bytes"
            print(text + (_details(job, coded, size) if coded else ""))

    def finish(self) -> None:
        """Print the summary."""
        if self._quiet or not self._several or not self._files:
            return
        seconds = time.perf_counter() - self._start
        if self._json:
            summary: dict[str, Any] = {
                "files": self._files,
                "input_bytes": self._before,
                "output_bytes": self._after,
                "seconds": round(seconds, 3),
            }
            if self._methods:
                summary["methods"] = {
                    method.name.lower(): {"files": count, "output_bytes": size}
                    for method, (count, size) in sorted(self._methods.items())
                }
            print(json.dumps({"summary": summary}))
            return
        text = f"{self._files:,} files: {self._before:,} → {self._after:,} bytes"
        if self._methods:
            text += f" ({_change(self._after, self._before)})"
        print(f"{text}, {seconds:.1f} s")
        for method, (count, size) in sorted(
            self._methods.items(), key=lambda item: METHODS[item[0]]
        ):
            print(f"  {METHODS[method]}: {count:,} files, {size:,} bytes")


def _facts(coded: Encoded, size: int) -> dict[str, Any]:
    record = coded.record
    return {
        "png_bytes": coded.png,
        "width": record.width,
        "height": record.height,
        "colour": record.colour.name.lower(),
        "method": record.method.name.lower(),
        "model": coded.model,
        "steps": record.steps or None,
        "bpsp": round(_rate(coded, size), 4),
        "seconds": round(coded.seconds, 3),
    }


def _details(job: Job, coded: Encoded, size: int) -> str:
    record = coded.record
    method = METHODS[record.method]
    if record.steps:
        method = f"{shown(coded.model)} in {steps_text(record.steps)}"
    changes = _change(size, job.size)
    if coded.png is not None and job.path.suffix.lower() != ".png":
        changes += f", {_change(size, coded.png)} of PNG"
    return f" ({changes}), {_rate(coded, size):.3f} bpsp, {method}, {coded.seconds:.2f} s"


def _rate(coded: Encoded, size: int) -> float:
    """Bits per sub-pixel of the picture."""
    record = coded.record
    return 8 * size / (record.height * record.width * SAMPLES.get(record.colour, 1))


def _change(after: int, before: int) -> str:
    return f"{100 * (after / max(1, before) - 1):+.1f} %"

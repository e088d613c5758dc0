"""Validation history of a run, read from its CSV logs."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import NamedTuple


class Validation(NamedTuple):
    """One validation of a run.

    Attributes:
        updates: number of optimiser updates before the validation.
        seconds: training time before the validation; None if it was not measured.
        bpsp: total bpsp.
        parts: bpsp of "base" and of each step, "1", "2", …; parts that were not logged are missing.
        quantised: whether inputs were quantised as in the exact network, see `QuantisedInputs`.
    """

    updates: int
    seconds: float | None
    bpsp: float
    parts: dict[str, float]
    quantised: bool = False


def best(history: Sequence[Validation]) -> Validation:
    """The validation of least bpsp, of those with quantised inputs if there are any.

    It is the one of best.ckpt, see `italic.training.checkpoints`. A bpsp of NaN, of a training that
    diverged, is never the least.
    """
    return min(history, key=lambda item: (isnan(item.bpsp), not item.quantised, item.bpsp))


def read_history(run_dir: Path) -> list[Validation]:
    """The validations of a run in chronological order, across resumes."""
    return [_validation(row) for row in _rows(run_dir) if row.get("val/bpsp")]


def read_training(run_dir: Path) -> dict[str, tuple[list[float], list[float]]]:
    """What a run logged during training: updates and values of each metric.

    The metrics are training losses (`train/…`), learning rates (`lr-…`) and `train/images_per_s`.
    """
    series: dict[str, tuple[list[float], list[float]]] = {}
    for row in _rows(run_dir):
        for name, value in row.items():
            if value and (name or "").startswith(("train/", "lr-")):
                updates, values = series.setdefault(name, ([], []))
                updates.append(float(row["step"]) + 1)
                values.append(float(value))
    return series


def logs(run_dir: Path) -> list[Path]:
    """The CSV logs of a run in chronological order; there is one for each start."""
    found = run_dir.glob("csv/version_*/metrics.csv")
    return sorted(found, key=lambda log: log.stat().st_mtime)


def _rows(run_dir: Path) -> list[dict[str, str]]:
    """The rows of the CSV logs in chronological order."""
    return [row for log in logs(run_dir) for row in csv.DictReader(log.read_text().splitlines())]


def _validation(row: dict[str, str]) -> Validation:
    parts = {}
    for name, value in row.items():
        found = re.fullmatch(r"val/bpsp_(base|step_(\d+))", name or "")
        if found and value:
            parts[str(int(found[2])) if found[2] else "base"] = float(value)
    return Validation(
        int(float(row.get("val/updates") or int(row["step"]) + 1)),
        float(row["val/seconds"]) if row.get("val/seconds") else None,
        float(row["val/bpsp"]),
        parts,
        bool(float(row.get("val/quantised") or 0)),
    )

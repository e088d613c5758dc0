"""What a run's own logs say of its validations."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import NamedTuple


class Validation(NamedTuple):
    """One validation of a run.

    updates: of the optimiser before it.
    seconds: of training before it; None if they were not counted.
    bpsp: of all parts together.
    parts: bpsp of "base" and of each step, "1" and so on; what was not logged is left out.
    """

    updates: int
    seconds: float | None
    bpsp: float
    parts: dict[str, float]


def read_history(run_dir: Path) -> list[Validation]:
    """The validations of a run in their order, those of all its resumed parts."""
    logs = sorted(run_dir.glob("csv/version_*/metrics.csv"), key=lambda log: log.stat().st_mtime)
    rows = [row for log in logs for row in csv.DictReader(log.read_text().splitlines())]
    return [_validation(row) for row in rows if row.get("val/bpsp")]


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
    )

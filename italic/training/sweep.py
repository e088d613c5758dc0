"""Hydra callback that collects the results of a sweep (train.py -m …) in a table."""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from italic.atomic import write_whole
from italic.measuring.results import write_table
from italic.schedule import steps_text
from italic.training.experiment import is_refusal

log = logging.getLogger(__name__)

OUTCOME = "outcome.json"  # file in the directory of each run
TABLE = "sweep.csv"  # file in the directory of the sweep
STEPS = "steps"  # key of the number of steps in validation
NOT_ENDED = "not ended"  # error of a run that was killed or is still training


@dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Attributes:
        overrides: Hydra overrides of the run.
        bpsp: best validation bpsp; None without a validation.
        seconds: duration of the run.
        error: reason of a failure; None if the run succeeded.
    """

    overrides: list[str]
    bpsp: float | None
    seconds: float
    error: str | None


class Sweep(Callback):
    """Writes the table after each run and prints it after the last run.

    A failed run does not end the sweep, but the command fails after the last run.
    """

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Warn about runs that would train the same network."""
        swept = [item for item in config.hydra.overrides.task if item.startswith("steps=")]
        if any(sign in item for item in swept for sign in ",(") and config.masks.unroll != 0:
            log.warning(
                "training on random partitions does not depend on `steps`, so runs that differ in "
                "nothing else train the same network: train once, then python evaluate.py "
                "ckpt_path=RUN_DIR 'steps=[1,4,16]'"
            )

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Start the clock of a run."""
        if config.hydra.mode == RunMode.MULTIRUN:
            # Joblib's workers set a start method that other process pools do not support.
            multiprocessing.set_start_method(None, force=True)
            self.start = time.monotonic()
            self._record(config, None, NOT_ENDED)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Record the result of a run."""
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        bpsp, reason = None, None
        try:
            bpsp = job_return.return_value
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            log.error("this run failed: %s", reason, exc_info=None if is_refusal(error) else error)
        # Hydra would end the sweep after a failed run, and Optuna after a run without a bpsp.
        job_return.status = JobStatus.COMPLETED
        job_return.return_value = bpsp if bpsp is not None and math.isfinite(bpsp) else None
        self._record(config, job_return.return_value, reason)
        sweep_dir = Path(config.hydra.sweep.dir)
        write_table(table(sweep_dir), sweep_dir / TABLE)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the table and name the best run."""
        sweep_dir = Path(config.hydra.sweep.dir)
        rows = table(sweep_dir)
        if not rows:
            sys.exit("train.py: the sweep has no runs: check that each glob(…) matches a choice")
        write_table(rows, sweep_dir / TABLE)
        print(f"\n{printed(rows)}\n")
        for steps, best in best_runs(rows).items():
            path = shlex.quote(str(sweep_dir / best["directory"]))
            number = "" if steps is None else f" in {steps_text(steps)}"
            print(f"best{number}: {path}, {best['bpsp']:.4f} bpsp")
        print(f"the table is in {shlex.quote(str(sweep_dir / TABLE))}")
        if failed := [row for row in rows if row["error"]]:
            sys.exit(
                f"train.py: {len(failed)} of {len(rows)} runs failed: see the column `error` of "
                "the table"
            )

    def _record(self, config: DictConfig, bpsp: float | None, error: str | None) -> None:
        seconds = time.monotonic() - self.start
        outcome = Outcome(list(config.hydra.overrides.task), bpsp, round(seconds, 1), error)
        path = Path(config.hydra.runtime.output_dir) / OUTCOME
        write_whole(path, json.dumps(asdict(outcome), indent=2).encode())


def table(sweep_dir: Path) -> list[dict[str, Any]]:
    """One row for each run of a sweep, by ascending bpsp; runs without a bpsp are last.

    Runs that are validated in different numbers of steps are not comparable: if `steps` differs,
    the rows are sorted by it first.

    Returns:
        Rows with the columns directory, one column per override key in which runs differ, bpsp,
        seconds and error.
    """
    outcomes = {
        path.parent.relative_to(sweep_dir).as_posix(): Outcome(**json.loads(path.read_text()))
        for path in sorted(sweep_dir.rglob(OUTCOME))
    }
    settings = {
        run: {key: value for key, _, value in (item.partition("=") for item in outcome.overrides)}
        for run, outcome in outcomes.items()
    }
    keys = dict.fromkeys(key for run in settings.values() for key in run)
    varied = [key for key in keys if len({run.get(key) for run in settings.values()}) > 1]
    rows: list[dict[str, Any]] = [
        {
            "directory": run,
            **{key: settings[run].get(key) for key in varied},
            "bpsp": outcome.bpsp,
            "seconds": outcome.seconds,
            "error": outcome.error,
        }
        for run, outcome in outcomes.items()
    ]
    rows.sort(key=lambda row: math.inf if row["bpsp"] is None else row["bpsp"])
    if STEPS in varied:
        rows.sort(key=lambda row: (len(row[STEPS] or ""), row[STEPS] or ""))  # as numbers
    return rows


def best_runs(rows: Sequence[Mapping[str, Any]]) -> dict[str | None, Mapping[str, Any]]:
    """The row of least bpsp for each value of `steps`; None stands for the default value."""
    best: dict[str | None, Mapping[str, Any]] = {}
    for row in rows:
        if row["bpsp"] is not None:
            best.setdefault(row.get(STEPS), row)
    return best


def printed(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table as text with aligned columns; empty columns are omitted."""
    names = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    cells = [names, *([_cell(row[name]) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)

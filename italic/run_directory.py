"""Run directories: the configuration and the checkpoints of a run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

CONFIG = "config.yaml"  # the configuration with which the run was started
CHECKPOINTS = "checkpoints"
RUNS = Path("runs")  # folder of the runs, see conf/train.yaml
LATEST = "latest"  # name of the latest run on the command line; a folder of this name is ./latest
LAST = "last.ckpt"  # the checkpoint from which a run is resumed
BEST = "best.ckpt"  # the checkpoint of the least validation bpsp, the result of the run


class RunError(RuntimeError):
    """A run directory or a configuration can't be used for the requested operation."""


def read_config(run_dir: Path) -> DictConfig:
    """The configuration with which a run was started.

    Raises:
        RunError: the directory is not a run directory.
    """
    path = run_dir / CONFIG
    if not path.is_file():
        raise RunError(
            f"{run_dir} is not a run directory: expected a directory with a {CONFIG} that train.py "
            "wrote, usually under runs/ or multirun/"
        )
    cfg = OmegaConf.load(path)
    assert isinstance(cfg, DictConfig)
    return cfg


def name_of(directory: Path) -> str:
    """The name of a directory, also if its path ends in . or .."""
    return Path(os.path.abspath(directory)).name


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of a configuration, nested dictionaries, and their values."""
    if not isinstance(tree, dict):
        yield prefix, tree
        return
    for key, value in tree.items():
        yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))


def runs_below(parent: Path) -> list[Path]:
    """The run directories with a checkpoint in a folder and its subfolders, in order of names.

    Checkpoints tell them: W&B writes files named config.yaml too, and a run may have failed.
    """
    return sorted(path.parent.parent for path in parent.glob(f"**/{CHECKPOINTS}/{LAST}"))


def latest_run(parent: Path = RUNS) -> Path:
    """The run with a checkpoint that was started or resumed last.

    Raises:
        RunError: the folder has no run with a checkpoint.
    """
    runs = [run for run in runs_below(parent) if (run / CONFIG).is_file()]
    if not runs:
        raise RunError(f"no run with a checkpoint in the folder {parent}: expected RUN_DIR")
    return max(runs, key=lambda run: (run / CONFIG).stat().st_mtime)


def with_latest(words: Sequence[str]) -> list[str]:
    """Command-line words, with the path of the latest run for resume=latest and ckpt_path=latest.

    Raises:
        RunError: as `latest_run`.
    """
    keys = ("resume", "ckpt_path")
    latest = [f"{key}={LATEST}" for key in keys]
    return [
        f"{word.partition('=')[0]}={latest_run()}" if word in latest else word for word in words
    ]


def find_checkpoint(run_dir: Path) -> Path:
    """The last checkpoint of a run, from which it is resumed.

    Raises:
        RunError: the run has no checkpoint.
    """
    path = run_dir / CHECKPOINTS / LAST
    if not path.is_file():
        raise RunError(f"{run_dir} has no checkpoint yet: expected {CHECKPOINTS}/{LAST} in it")
    return path


def find_result(run_dir: Path) -> Path:
    """The checkpoint of a run's least validation bpsp; without a validation, the last checkpoint.

    Raises:
        RunError: the run has no checkpoint.
    """
    last = find_checkpoint(run_dir)
    best = last.with_name(BEST)
    return best if best.is_file() else last


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint on the CPU; it may hold only tensors and plain values, no code.

    Raises:
        RunError: the file is damaged, or holds other objects.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint["state_dict"], checkpoint["global_step"], checkpoint["callbacks"]
        return checkpoint
    except Exception as error:
        raise RunError(
            f"{path} can't be loaded: it is damaged or not a checkpoint of train.py; "
            "expected a checkpoint with only tensors and plain values"
        ) from error

"""What the directory of a run holds: its configuration and its checkpoints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

CONFIG = "config.yaml"  # in a run directory: the configuration that it was started with
CHECKPOINTS = "checkpoints"
LAST = "last.ckpt"  # with which a run goes on
BEST = "best.ckpt"  # of the least validation bpsp: the run's result
# Names of classes in the configurations of earlier runs, and what they have become.
MOVED = {"italic.coding.base.": "italic.coding.base_codes.base."}


class RunError(RuntimeError):
    """A run directory or a configuration that can't be used as asked."""


def read_config(run_dir: Path) -> DictConfig:
    """The configuration that a run was started with.

    Raises:
        RunError: the directory is not one of a run.
    """
    path = run_dir / CONFIG
    if not path.is_file():
        raise RunError(
            f"{run_dir} is not a run directory: expected {CONFIG} in it, "
            "as train.py writes it under runs/ or multirun/"
        )
    text = path.read_text()
    for old, new in MOVED.items():
        text = re.sub(rf"\b_target_: {re.escape(old)}", f"_target_: {new}", text)
    cfg = OmegaConf.create(text)
    assert isinstance(cfg, DictConfig)
    return cfg


def find_checkpoint(run_dir: Path) -> Path:
    """The last checkpoint of a run, with which it goes on.

    Raises:
        RunError: the run has not saved one.
    """
    path = run_dir / CHECKPOINTS / LAST
    if not path.is_file():
        raise RunError(f"{run_dir} holds no checkpoint yet: expected {CHECKPOINTS}/{LAST} in it")
    return path


def find_result(run_dir: Path) -> Path:
    """The checkpoint of a run's least validation bpsp; the last one, if nothing was validated.

    Raises:
        RunError: the run has not saved one.
    """
    last = find_checkpoint(run_dir)
    best = last.with_name(BEST)
    return best if best.is_file() else last


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint holds: tensors and plain values, on the CPU; it can't run any code.

    Raises:
        RunError: it is damaged, or holds anything else.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint["state_dict"], checkpoint["global_step"], checkpoint["callbacks"]
        return checkpoint
    except Exception as error:
        raise RunError(
            f"{path} can't be loaded: it is damaged, or no checkpoint of train.py; "
            "expected one of tensors and plain values"
        ) from error

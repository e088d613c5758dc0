"""Runs of train.py and evaluate.py in this process: another one takes seconds to begin."""

import contextlib
import io
import logging
import os
import runpy
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hydra import compose, initialize
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict, read_write

from italic.config import register
from italic.keys import quoted_paths
from italic.training.resuming import configure
from italic.training.run import train

ROOT = Path(__file__).parents[1]
TINY = [  # trains in a second
    "model=lattice",
    "model.features=8",
    "model.blocks=1",
    "model.window=3",
    "model.components=1",
    "model.context_features=0",
    "datamodule=photos",
    "datamodule.images.size=8",
    "datamodule.train_limit=16",
    "datamodule.eval_limit=4",
    "datamodule.batch_size=4",
    "masks.max_steps=4",
    "base=none",
    "steps=2",
    "trainer.max_steps=3",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "trainer.enable_model_summary=false",
    "logger.pictures=0",
    "threads=1",
]

register()


def trained(*words: str) -> float:
    """What train.py makes of a command line that names hydra.run.dir, or resume."""
    words = tuple(quoted_paths(words))
    primary = configure(words)
    with initialize(version_base="1.3", config_path="../conf"):
        cfg = compose(primary, list(words), return_hydra_config=True)
        with read_write(cfg.hydra):
            cfg.hydra.runtime.output_dir = cfg.hydra.run.dir
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        try:
            return train(cfg)
        finally:
            HydraConfig.instance().cfg = None


def ran(script: str, *arguments: str) -> str:
    """What a command prints: a script of the checkout, or `-m` and a module."""
    handlers, level, threads = logging.root.handlers[:], logging.root.level, torch.get_num_threads()
    said = io.StringIO()
    argv = [script, *arguments] if script != "-m" else [*arguments]
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(sys, "argv", argv))
        stack.enter_context(patch.dict(os.environ))
        stack.enter_context(contextlib.redirect_stdout(said))
        stack.enter_context(contextlib.redirect_stderr(said))
        try:
            if script == "-m":
                runpy.run_module(arguments[0], run_name="__main__")
            else:
                runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as end:
            assert not end.code, f"{argv}: {end.code}\n{said.getvalue()}"
        finally:
            for handler in set(logging.root.handlers) - set(handlers):
                handler.close()
            logging.root.handlers[:] = handlers
            logging.root.setLevel(level)
            torch.set_num_threads(threads)
    return said.getvalue()


def refused(script: str, *arguments: str) -> str:
    """What a script says as it ends: one sentence."""
    changes = patch.object(sys, "argv", [script, *arguments]), patch.dict(os.environ)
    with changes[0], changes[1], pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    said = end.value.code
    assert isinstance(said, str) and said.startswith(f"{script}: ") and "\n" not in said
    return said

"""From a trained run to a model file: the exact network, calibrated on training images."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from torch import nn

from italic import experiment
from italic.coding.base import BaseCode
from italic.coding.codec import Codec
from italic.coding.exact import make_exact
from italic.coding.files import write_whole
from italic.coding.model import Model, Recipe, load_model, save_model
from italic.experiment import RunError
from italic.models.rnan import RNAN

log = logging.getLogger(__name__)

MODEL = "model.safetensors"  # in a run directory
CALIBRATION_IMAGES = 16  # training images, ...
CALIBRATION_STEPS = (1, 4, 16)  # ... each coded in these numbers of steps


def exported(run_dir: Path) -> Model:
    """The model of a run's last checkpoint, made anew if the run has trained on since.

    Raises:
        RunError: no run, no checkpoint, or one that the model file cannot be made from.
    """
    path = run_dir / MODEL
    card = path.with_suffix(".json")
    checkpoint = hashlib.sha256(experiment.find_checkpoint(run_dir).read_bytes()).hexdigest()
    if not (
        path.is_file()
        and card.is_file()
        and json.loads(card.read_text())["checkpoint_sha256"] == checkpoint
    ):
        card.unlink(missing_ok=True)  # a card never stands beside a model that it is not of
        sha256 = _export(run_dir, path)
        text = json.dumps({"sha256": sha256, "checkpoint_sha256": checkpoint}, indent=2)
        write_whole(card, text.encode())
    return load_model(path)


def _export(run_dir: Path, path: Path) -> str:
    cfg = experiment.read_config(run_dir)
    network = experiment.load_network(run_dir)
    if not isinstance(network, RNAN):
        raise RunError(f"only RNAN networks become model files; {cfg.model._target_} is another")
    base = experiment.build_base(cfg)
    images = experiment.build_images(cfg).load("train")
    images = images[:: max(1, len(images) // CALIBRATION_IMAGES)][:CALIBRATION_IMAGES]
    log.info("making the exact model of %s, calibrated on %d training images", run_dir, len(images))

    def calibrate(untouched: nn.Module) -> None:
        for steps in CALIBRATION_STEPS:
            _codec(untouched, base, cfg, min(steps, images[0, ..., 0].size)).encode(images)

    return save_model(path, make_exact(network, calibrate), recipe(cfg))


def recipe(cfg: DictConfig) -> Recipe:
    """What a model file holds of a run's configuration."""
    network = dict(OmegaConf.to_container(cfg.model, resolve=True))  # type: ignore[arg-type]
    base = dict(OmegaConf.to_container(cfg.base, resolve=True))  # type: ignore[arg-type]
    network.pop("_target_")
    with_base = base.pop("_target_").endswith(".BPG")
    sizes = cfg.masks.sizes
    return Recipe(
        network=network,
        base=base if with_base else None,
        steps=cfg.steps,
        order=cfg.masks.order,
        sizes=list(sizes) if OmegaConf.is_list(sizes) else sizes,
        exponent=cfg.masks.exponent,
    )


def _codec(network: nn.Module, base: BaseCode, cfg: DictConfig, steps: int) -> Codec:
    made = recipe(cfg)
    sizes = made.sizes if isinstance(made.sizes, str) else "equal"
    return Codec(network, base, steps, made.order, sizes, made.exponent)

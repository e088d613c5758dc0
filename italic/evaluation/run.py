"""An evaluation: check the configuration, load models and images, and run a mode."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from italic.coding.model_files.loading import on_device
from italic.config import EvaluationConfig
from italic.datamodules.images.crops import centre_crops
from italic.datamodules.images.sources import whole_of
from italic.errors import check_range
from italic.evaluation.named_functions import function
from italic.evaluation.results import replaced
from italic.evaluation.sources import Inputs, asked_steps, find_sources, images_for
from italic.measuring.dashboard import check_settings
from italic.measuring.results import CurveRow
from italic.run_directory import RunError
from italic.schedule import SIZES, check_exponent, check_sizes
from italic.training import experiment, named_code
from italic.training.allocator import keep_freed_memory

log = logging.getLogger(__name__)

# Columns of the tables of modes that use metrics.
COLUMNS = {column.name for column in fields(CurveRow)} | {
    *("picture", "psnr", "psnr_of_mse", "ssim", "steps_done", "bpsp"),
}
OF_TRAINING = "logger.pictures", "logger.curve_every", "logger.artifact"  # keys not used here
# Groups of keys of a single mode: curve, attention, …
OF_MODES = [group.name for group in fields(EvaluationConfig) if is_dataclass(group.default_factory)]
# What a mode can use besides the other inputs, see docs/extending.md.
USES = "whole", "metrics", "steps", "logger", *OF_MODES


def evaluate(cfg: DictConfig) -> None:
    """Run the mode `cfg.mode` with the models of runs or model files on the same images.

    Raises:
        SettingError: a number is out of range.
        RunError: a key has no value or no effect, the mode or a metric can't be called, no model is
            named or found, the models were trained on different images, or the mode does not
            support the input.
        ExtensionError: the function of the mode or of a metric does not exist.
        ModelError: there is no such device, or a model file does not exist or is damaged.
        DataError: the images are missing or can't be used.
    """
    experiment.check_complete(cfg)
    with on_device(cfg.device):
        _evaluate(cfg)


def _refuse_unused(cfg: DictConfig, uses: Collection[str]) -> None:
    """RunError if the command sets a key that trainings, other modes or other loggers use."""
    if cfg.metrics and "metrics" not in uses:
        raise RunError("this mode has no table for metrics: expected metrics=[], or mode=curve")
    if cfg.steps is not None and len(cfg.steps) > 1 and "steps" not in uses:
        raise RunError(
            f"this mode uses a single number of steps, but steps={list(cfg.steps)} has "
            f"{len(cfg.steps)}: expected steps=[{max(cfg.steps)}], or mode=curve"
        )
    if cfg.logger.wandb and "logger" not in uses:
        raise RunError("this mode logs nothing to W&B: expected logger=csv, or mode=curve")
    hydra = HydraConfig.get()
    for override in hydra.overrides.task:
        key = override.lstrip("+~").partition("=")[0]
        group, name, *_ = (*key.split("."), "")
        # The jobs of a multirun have the same keys, but may have different modes.
        of_another = group == "evaluate" and name in OF_MODES and name not in uses
        if of_another and hydra.mode != RunMode.MULTIRUN:
            raise RunError(f"{key} has no effect in this mode: leave it out, or use mode={name}")
        of_batches = key.startswith("datamodule.") and not key.startswith("datamodule.images.")
        if of_batches or key in OF_TRAINING:
            raise RunError(
                f"{key} has no effect in evaluate.py: leave it out; evaluate.limit and "
                "evaluate.batch_size are the number of images, and of those coded together"
            )
        if group == "logger" and name not in ("", "wandb") and not cfg.logger.wandb:
            raise RunError(f"{key} has no effect without W&B: leave it out, or use logger=wandb")


def _evaluate(cfg: DictConfig) -> None:
    named_code.import_own_code(cfg)  # the user's configuration, so it may name plugins
    mode = function(cfg.mode, "the mode", ["inputs"], leave_out=["uses"])
    uses = list(cfg.mode.get("uses") or ())
    if not set(uses) <= set(USES):
        raise RunError(f"a mode may use {', '.join(USES)}; got uses: {uses}")
    arguments = ["original", "decoded", "bits"]
    metrics = {
        name: function(node, f"the metric {name}", arguments) for name, node in cfg.metrics.items()
    }
    if taken := metrics.keys() & COLUMNS:
        raise RunError(f"the tables have a column {min(taken)} already: rename the metric")
    _refuse_unused(cfg, uses)
    experiment.use_threads(cfg.threads)
    keep_freed_memory()
    check_settings(cfg.logger)
    if cfg.logger.same_run and cfg.ckpt_path is None:
        raise RunError(
            "logger.same_run=true logs to the W&B run of a training: expected ckpt_path=RUN_DIR"
        )
    if cfg.logger.others:
        raise RunError("other loggers than W&B apply to trainings: expected logger=csv or wandb")
    check_range("evaluate.limit", cfg.evaluate.limit, 0)
    check_range("evaluate.batch_size", cfg.evaluate.batch_size, 1)
    check_range("evaluate.pictures", cfg.evaluate.pictures, 0)
    check_range("evaluate.curve.timed", cfg.evaluate.curve.timed, 0)
    if cfg.evaluate.sizes is not None:
        check_sizes(cfg.evaluate.sizes, (*SIZES, "planned"))
    if cfg.evaluate.exponent is not None:
        check_exponent(cfg.evaluate.exponent)
    numbers = asked_steps(cfg)
    sources = find_sources(cfg)
    data = images_for(cfg, sources)
    source = experiment.build_images(data)
    splits = ("train", "validation", "test", *(("all",) if whole_of(source) else ()))
    if cfg.evaluate.split not in splits:
        raise RunError(f"evaluate.split must be one of {', '.join(splits)} for these images")
    limit = cfg.evaluate.limit or None
    complete = whole_of(source) if "whole" in uses and not cfg.evaluate.curve.tiles else None
    whole: Sequence[np.ndarray] | None = None
    names: Sequence[str] = ()
    if complete is None:
        images = source.load(cfg.evaluate.split)[:limit]
    else:
        whole = complete.whole(cfg.evaluate.split)[:limit]
        names = complete.names(cfg.evaluate.split)[:limit]
        images = centre_crops(whole[: max(1, cfg.evaluate.pictures)])
    pixels = min(image[..., 0].size for image in (images[0], *(whole or ())))
    if numbers is not None and not all(1 <= steps <= pixels for steps in numbers or [0]):
        raise RunError(
            f"steps must be a list of numbers from 1 to {pixels}, the number of pixels of an image"
        )
    models = {name: source.model() for name, source in sources.items()}
    unplanned = [name for name, model in models.items() if not model.recipe.plans]
    if cfg.evaluate.sizes == "planned" and unplanned:
        raise RunError(
            f"the model of {unplanned[0]} has no plans: train it with masks.sizes=planned, "
            "or leave out evaluate.sizes"
        )
    output = Path(HydraConfig.get().runtime.output_dir)
    run_dirs = {name: source.run_dir for name, source in sources.items() if source.run_dir}
    kind = data.datamodule.images._target_.rpartition(".")[2]
    inputs = Inputs(cfg, models, run_dirs, images, kind, output, whole, names, metrics)
    for name, model in models.items():
        sizes = inputs.planned(model).recipe.sizes
        if cfg.evaluate.exponent is not None and sizes != "power":
            raise RunError(
                f"evaluate.exponent applies to power sizes, but those of {name} are {sizes}: leave "
                "it out, or use evaluate.sizes=power too"
            )
    size = "{}×{}".format(*images.shape[1:3]) if whole is None else "different numbers of"
    log.info("%d images of %s pixels; results go to %s", len(inputs.measured), size, output)
    with replaced(output, cfg.mode._target_, inputs.written):
        mode(inputs)

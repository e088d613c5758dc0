"""Export of a trained run to a model file: calibration of the exact network, planning of steps."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.progress import Progress

from italic import run_directory
from italic.atomic import write_whole
from italic.coding.base_codes.base import BPG, BaseCode, Ladder, NoBase
from italic.coding.exact import calibrated, silent_blocks
from italic.coding.model_files.installed import declaration
from italic.coding.model_files.loading import load_model
from italic.coding.model_files.model import FORMAT, Model, save_model
from italic.coding.model_files.recipe import NETWORKS, Recipe
from italic.coding.streams.codec import Codec
from italic.coding.streams.entropy import StreamError
from italic.datamodules.images import Folder
from italic.measuring.history import read_history
from italic.models.network import Network
from italic.run_directory import CONFIG, RunError
from italic.training import experiment, named_code, planning
from italic.training.meter import metered

log = logging.getLogger(__name__)

MODEL = "model.safetensors"  # in a run directory
VERSION = 2  # version of the export; models of another version are exported again
CALIBRATION_IMAGES = 16  # training images for calibration
CALIBRATION_STEPS = (1, 4, 16)  # numbers of steps in which each of them is coded
PLANNING_IMAGES = 64  # training images on which the costs of segments are measured


def exported(run_dir: Path) -> Model:
    """The model of a run's best checkpoint, exported again if checkpoint or configuration changed.

    Raises:
        RunError: the directory is not a run directory, has no checkpoint, the checkpoint does not
            match the configuration, the network has no exact form, or its training has diverged.
    """
    path = run_dir / MODEL
    card = path.with_suffix(".json")
    cfg = run_directory.read_config(run_dir)
    if not experiment.is_exact(cfg):
        raise RunError(
            f"{run_dir} was trained with training.exact=false, so it can't be exported, coded or "
            "evaluated by evaluate.py: its report has its estimated bits"
        )
    named_code.check_code(cfg)
    parts = run_directory.find_result(run_dir).read_bytes(), (run_dir / CONFIG).read_bytes()
    source = hashlib.sha256(b"".join(parts) + bytes([FORMAT, VERSION])).hexdigest()
    if not (
        path.is_file()
        and card.is_file()
        and json.loads(card.read_text()).get("source_sha256") == source
    ):
        card.unlink(missing_ok=True)  # a card must never describe another model file
        sha256 = _export(run_dir, path)
        text = json.dumps({"sha256": sha256, "source_sha256": source}, indent=2)
        write_whole(card, text.encode())
    return load_model(path)


def _export(run_dir: Path, path: Path) -> str:
    cfg = run_directory.read_config(run_dir)
    network = experiment.load_network(run_dir)
    bases = experiment.build_bases(cfg)
    images = _subset(experiment.build_images(cfg).load("train"), CALIBRATION_IMAGES)
    log.info("exporting %s: calibration on %d training images", run_dir, len(images))

    of_run = recipe(cfg)
    if not all(weights.isfinite().all() for weights in network.parameters()):
        raise _diverged(run_dir, "its weights are not finite")
    bars = Progress(disable=not _shows_progress(cfg))
    task = bars.add_task("calibration", total=len(CALIBRATION_STEPS) * len(bases))

    def calibrate(floating: Network) -> None:
        bars.reset(task)  # a calibration may need several passes
        for rung, base in enumerate(bases):
            for steps in CALIBRATION_STEPS:
                # Inputs of fewer steps than in training are not typical.
                least = cfg.masks.min_steps if rung == 0 else 1
                number = min(max(steps, least), images[0, ..., 0].size)
                Codec(floating, base, of_run.schedule, number, rung).encode(images)
                bars.advance(task)

    try:
        with bars:
            exact = calibrated(network, calibrate)
    except StreamError as error:
        raise _diverged(run_dir, str(error)) from error
    if dead := silent_blocks(exact):
        log.warning(
            "%d residual blocks are dead and can't recover (%s, …): use model.leak above 0 or a "
            "smaller learning rate",
            len(dead),
            dead[0],
        )
    if of_run.sizes == "planned":
        of_run = _planned(of_run, exact, bases, cfg)
    return save_model(path, exact, of_run)


def _diverged(run_dir: Path, reason: str) -> RunError:
    return RunError(
        f"the training in {run_dir} has diverged ({reason}): train again with smaller learning "
        "rates, optimiser.learning_rate=…"
    )


def _planned(of_run: Recipe, exact: Network, bases: Sequence[BaseCode], cfg: DictConfig) -> Recipe:
    """The recipe with the rung and the step sizes of fewest bits for each number of steps."""
    images = _subset(experiment.build_images(cfg).load("train"), PLANNING_IMAGES)
    height, width = images.shape[1:3]
    log.info("planning the step sizes on %d training images", len(images))
    nodes = planning.nodes(height * width)
    plans: dict[str, list[int]] = {}
    rungs: dict[str, int] = {}
    least: dict[str, float] = {}
    for rung, base in enumerate(bases):
        codes = [base.encode(image) for image in images]
        decoded = np.stack([base.decode(code, height, width) for code in codes])
        costs = planning.segment_costs(
            exact, images, decoded, of_run.schedule, rung, _shows_progress(cfg)
        )
        for steps, path in planning.plans(costs).items():
            bits = 8 * sum(map(len, codes)) + sum(costs[a, b] for a, b in pairwise(path))
            if bits < least.get(str(steps), np.inf):
                least[str(steps)], rungs[str(steps)] = bits, rung
                plans[str(steps)] = np.diff(nodes[path]).tolist()
    return replace(of_run, plans=plans, rungs=rungs if len(bases) > 1 else {})


def _shows_progress(cfg: DictConfig) -> bool:
    return OmegaConf.select(cfg, "trainer.enable_progress_bar") is not False


def _subset(images: np.ndarray, count: int) -> np.ndarray:
    return images[:: max(1, len(images) // count)][:count]


def recipe(cfg: DictConfig) -> Recipe:
    """The part of a run's configuration that a model file stores, without plans."""
    network = dict(OmegaConf.to_container(cfg.model, resolve=True))  # type: ignore[arg-type]
    base = dict(OmegaConf.to_container(cfg.base, resolve=True))  # type: ignore[arg-type]
    with_base = base["_target_"] != _name(NoBase)
    # A model file stores class names only for user-defined classes.
    kinds = {_name(known): kind for kind, known in NETWORKS.items()}
    if network["_target_"] in kinds:
        network["kind"] = kinds[network.pop("_target_")]
    if base["_target_"] in map(_name, (BPG, Ladder, NoBase)):
        del base["_target_"]
    network |= experiment.rungs(cfg)
    sizes = cfg.masks.sizes
    return Recipe(
        network=network,
        base=base if with_base else None,
        steps=cfg.steps,
        order=cfg.masks.order,
        sizes=list(sizes) if OmegaConf.is_list(sizes) else sizes,
        exponent=cfg.masks.exponent,
    )


def check_recipe(cfg: DictConfig) -> None:
    """Check, before a training, that a model file can store the settings of the run.

    Raises:
        RunError: a setting is out of the range of model files.
    """
    try:
        recipe(cfg).check()
    except ValueError as error:
        raise RunError(f"no model file can store the settings of this run: {error}") from error


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def publish(run_dir: Path, path: Path, steps: int | None = None) -> None:
    """Copy a run's model and write a model card beside it, which describes model and training.

    Values that the run has not measured or logged are null in the card. If there is a card already,
    its licence and its declaration of what the model is for are kept, see `installed.declaration`.

    Args:
        run_dir: run directory of train.py.
        path: path of the copy, which ends in .safetensors; italic/weights/NAME.safetensors becomes
            the installed model NAME.
        steps: the encoder's default number of steps; None for that of the run.

    Raises:
        RunError: as `exported`.
        DataError: the training images, which are counted for the card, can't be loaded.
        CardError: the card that is there already is damaged.
    """
    model = exported(run_dir)
    cfg = run_directory.read_config(run_dir)
    images = experiment.build_images(cfg)
    checkpoint = run_directory.load_checkpoint(run_directory.find_result(run_dir))
    updates, counts = checkpoint["global_step"], metered(checkpoint)
    curve = _validation_curve(run_dir)
    bpsp = [point["bpsp"] for point in curve if point["updates"] == updates]
    card = {
        "name": path.stem,
        "sha256": model.sha256,
        "validation_bpsp": bpsp[-1] if bpsp else None,
        "optimiser_steps": updates,
        "images_seen": counts.get("images"),
        "training_seconds": counts.get("seconds"),
        "training_data": type(images).__name__,
        "training_images": len(images.load("train")),
        **({"training_credits": images.credits("train")} if isinstance(images, Folder) else {}),
        "validation_curve": curve,
        "configuration": OmegaConf.to_container(cfg, resolve=True),
    }
    card |= _kept(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").unlink(missing_ok=True)  # a card must never describe another file
    if steps is None:
        write_whole(path, (run_dir / MODEL).read_bytes())
    else:
        card["sha256"] = save_model(path, model.network, replace(model.recipe, steps=steps))
    write_whole(path.with_suffix(".json"), json.dumps(card, indent=1).encode())
    log.info("wrote %s and its card %s", path, path.with_suffix(".json"))


def _kept(path: Path) -> dict[str, Any]:
    """What the card beside a model file says that a run does not know: licence and declaration."""
    declaration(path)  # refuses a damaged card
    card = path.with_suffix(".json")
    earlier = json.loads(card.read_text()) if card.is_file() else {}
    return {key: earlier[key] for key in ("licence", "for") if key in earlier}


def _validation_curve(run_dir: Path) -> list[dict[str, float | None]]:
    """bpsp, optimiser updates and seconds (None if not logged) of each validation."""
    return [
        {"updates": item.updates, "seconds": item.seconds, "bpsp": item.bpsp}
        for item in read_history(run_dir)
    ]

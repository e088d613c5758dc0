"""Going on with a run: it keeps its own configuration, of which little may be changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from italic.config import BASES, IMAGES, MODELS, DataModuleConfig, TrainConfig
from italic.run_directory import CONFIG, RunError, read_config

NEW, RESUMED = "train", "resume"  # primary configurations in conf/
NODE = "resumed_run"  # which conf/resume.yaml extends
# What the run takes from its optimiser's state, whatever its configuration says.
IN_CHECKPOINT = (
    "training.learning_rate",
    "training.body_learning_rate",
    "training.weight_decay",
)
# What may change: how training goes on, not what is trained, nor what its validation bpsp is of.
MAY_CHANGE = (
    *("trainer.", "training.", "logger.", "datamodule.", "seed", "threads"),
    *("masks.unroll", "masks.min_steps", "masks.max_steps"),
)
STAYS = (
    *("datamodule.images.", "datamodule.eval_limit", "datamodule.by_heart"),
    "training.find_batch_size",
)


def configure(words: Sequence[str]) -> str:
    """The name of the primary configuration for train.py's command line.

    For resume=RUN_DIR it is `RESUMED`, which then stands for the configuration of that run: Hydra
    composes the other words with it.

    Raises:
        RunError: no run lies there, or what the words change can't be changed in it.
    """
    overrides = _overrides(words)
    resume = next((item for item in overrides if item.get_key_element() == "resume"), None)
    run_dir = resume.value() if resume is not None else None
    if not isinstance(run_dir, str) or {"-m", "--multirun"} & set(words):
        return NEW
    if not run_dir:  # of a variable that is not set; as a path it would be the current folder
        raise RunError("resume names no run: expected resume=RUN_DIR")
    if any(item.get_key_element() == "weights" for item in overrides):
        raise RunError("resume goes on with the run's own weights: leave out weights=…")
    cfg = _typed(Path(run_dir))
    for item in overrides:
        key = item.key_or_group
        group = OmegaConf.is_dict(OmegaConf.select(cfg, key)) or key in ("experiment", "debug")
        if not key.startswith("hydra") and (item.is_add() or item.is_delete() or group):
            raise RunError(
                f"'{item.input_line}' can't be changed in a resumed run: it goes on with its own "
                "configuration; single values such as trainer.max_epochs=… may be given"
            )
    ConfigStore.instance().store(name=NODE, node=cfg)
    return RESUMED


def resumed(cfg: DictConfig) -> DictConfig:
    """The configuration that a run goes on with.

    Args:
        cfg: its own with changes, as composed after `configure`.

    Raises:
        RunError: one of the changes is none that a run can take.
    """
    before = dict(_leaves(OmegaConf.to_container(_typed(Path(cfg.resume)))))
    cfg.resume = before["resume"]
    after = dict(_leaves(OmegaConf.to_container(cfg)))
    for key in [key for key in after if key not in before or after[key] != before[key]]:
        if key in IN_CHECKPOINT:
            raise RunError(f"{key} comes with the run's checkpoint: it can't be changed")
        # A folder may have moved: texts say where images lie.
        place = key.startswith("datamodule.images.") and isinstance(before.get(key), str)
        place = place and not key.endswith("_target_")
        if not place and (not key.startswith(MAY_CHANGE) or key.startswith(STAYS)):
            raise RunError(
                f"{key} can't be changed in a resumed run: its weights and its validation bpsp "
                f"belong to {before.get(key)}; expected settings of trainer, logger or the loader"
            )
    return cfg


def _overrides(words: Sequence[str]) -> list[Override]:
    """Those among the words of a command line; what can't be read, Hydra refuses later."""
    parser = OverridesParser.create()
    found = []
    for word in words:
        if not word.startswith("-") and ("=" in word or word.startswith("~")):
            try:
                found.append(parser.parse_override(word))
            except HydraException:
                continue
    return found


def _typed(run_dir: Path) -> DictConfig:
    """A run's configuration with the types that its keys are declared with; RunError."""
    cfg = read_config(run_dir)
    schema = OmegaConf.structured(TrainConfig)
    schema.datamodule = DataModuleConfig
    for place, kinds in {"model": MODELS, "base": BASES, "datamodule.images": IMAGES}.items():
        declared = {kind._target_: kind for kind in kinds.values()}
        target = OmegaConf.select(cfg, f"{place}._target_")
        OmegaConf.update(schema, place, declared.get(target, {}))
    try:
        merged = OmegaConf.merge(schema, cfg)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"{run_dir / CONFIG} is no configuration of a run: {reason}") from error
    assert isinstance(merged, DictConfig)
    return merged


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys with dots, and their values, of a configuration."""
    if not isinstance(tree, dict):
        yield prefix, tree
        return
    for key, value in tree.items():
        yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))

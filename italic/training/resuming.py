"""Resuming a run with its stored configuration, of which only some settings may change."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from italic.config import CHOICES, DataModuleConfig, TrainConfig
from italic.run_directory import CONFIG, RunError, leaves, read_config

NEW, RESUMED = "train", "resume"  # primary configurations in conf/
NODE = "resumed_run"  # name of the run's configuration, which conf/resume.yaml extends
# Settings that are restored from the optimiser's state in the checkpoint.
IN_CHECKPOINT = ("optimiser.",)
# Settings that may change: those that affect neither the network nor the validation set.
MAY_CHANGE = (
    *("trainer.", "training.", "lr_schedule.", "callbacks.", "logger.", "datamodule."),
    *("seed", "threads"),
    *("masks.unroll", "masks.min_steps", "masks.max_steps", "masks.few_steps"),
)
# Exceptions from `MAY_CHANGE`.
FIXED = (
    *("datamodule.images.", "datamodule.eval_limit", "datamodule.validate_on_train"),
    *("training.find_batch_size", "training.exact"),
)


def configure(words: Sequence[str]) -> str:
    """The name of the primary Hydra configuration for the command line of train.py.

    For resume=RUN_DIR it is `RESUMED`. The run's configuration is then registered with Hydra, which
    applies the other overrides to it.

    Raises:
        RunError: RUN_DIR is not a run directory, or an override can't be applied to a resumed run.
    """
    overrides = _overrides(words)
    resume = next((item for item in overrides if item.get_key_element() == "resume"), None)
    run_dir = resume.value() if resume is not None else None
    if not isinstance(run_dir, str) or {"-m", "--multirun"} & set(words):
        return NEW
    if not run_dir:  # from an unset shell variable; as a path it would be the current folder
        raise RunError("resume names no run: expected resume=RUN_DIR")
    if any(item.get_key_element() == "weights" for item in overrides):
        raise RunError("a resumed run continues with its own weights: leave out weights=…")
    cfg = _typed(Path(run_dir))
    for item in overrides:
        key = item.key_or_group
        group = OmegaConf.is_dict(OmegaConf.select(cfg, key)) or key in ("experiment", "debug")
        if not key.startswith("hydra") and (item.is_add() or item.is_delete() or group):
            raise RunError(
                f"'{item.input_line}' can't be applied to a resumed run, which keeps its "
                "configuration: expected only single values such as trainer.max_epochs=…"
            )
    ConfigStore.instance().store(name=NODE, node=cfg)
    return RESUMED


def resumed(cfg: DictConfig) -> DictConfig:
    """The configuration of a resumed run.

    Args:
        cfg: the run's configuration with overrides, as composed after `configure`.

    Raises:
        RunError: an override can't be applied to a resumed run.
    """
    before = dict(leaves(OmegaConf.to_container(_typed(Path(cfg.resume)))))
    cfg.resume = before["resume"]
    after = dict(leaves(OmegaConf.to_container(cfg)))
    for key in [key for key in after if key not in before or after[key] != before[key]]:
        if key.startswith(IN_CHECKPOINT):
            raise RunError(
                f"{key} can't be changed in a resumed run, which restores it from its checkpoint: "
                f"leave out {key}=…"
            )
        # The image folder may have moved; string settings of image sources are paths.
        is_path = key.startswith("datamodule.images.") and isinstance(before.get(key), str)
        is_path = is_path and not key.endswith("_target_")
        if not is_path and (not key.startswith(MAY_CHANGE) or key.startswith(FIXED)):
            raise RunError(
                f"{key} can't be changed in a resumed run, since its weights or its validation "
                f"bpsp depend on the value {before.get(key)}: expected one of the keys that "
                "docs/training.md lists"
            )
    return cfg


def _overrides(words: Sequence[str]) -> list[Override]:
    """The overrides among command-line words; invalid ones are left for Hydra to reject."""
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
    """A run's configuration with the declared types of its keys.

    Raises:
        RunError: the directory is not a run directory, or its configuration is invalid.
    """
    cfg = read_config(run_dir)
    schema = OmegaConf.structured(TrainConfig)
    schema.datamodule = DataModuleConfig
    for place, kinds in CHOICES.items():
        declared = {kind._target_: kind for kind in kinds.values()}
        target = OmegaConf.select(cfg, f"{place}._target_")
        OmegaConf.update(schema, place, declared.get(target, {}))
    try:
        merged = OmegaConf.merge(schema, cfg)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"{run_dir / CONFIG} is not the configuration of a run: {reason}") from error
    assert isinstance(merged, DictConfig)
    return merged

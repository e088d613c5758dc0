"""From a configuration to its parts, and from a run directory back to its network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from italic.coding.base import BaseCode, Ladder, NoBase
from italic.coding.exact import check_layers, drop_silent_blocks, floating_state
from italic.coding.model import load_model
from italic.datamodules.images import ImageSource
from italic.datamodules.step_masks import StepMasks
from italic.errors import reason
from italic.extensions import import_own, own
from italic.models.estimator import Estimator
from italic.models.layers import ResidualGroup
from italic.models.network import Network
from italic.schedule import Schedule

CONFIG = "config.yaml"  # in a run directory: the configuration that it was started with
CHECKPOINTS = "checkpoints"
LAST = "last.ckpt"


class RunError(RuntimeError):
    """A run directory or a configuration that can't be used as asked."""


def use_threads(number: int) -> None:
    """Compute in as many threads of the processor; 0 leaves the choice to PyTorch.

    Raises:
        RunError: a negative number.
    """
    if number < 0:
        raise RunError(f"threads must be 0 (PyTorch's choice) or more; got {number}")
    if number:
        torch.set_num_threads(number)


def unroll(cfg: DictConfig) -> int:
    """Steps of a training sample: as configured, else 2 for a recurrent network and 1 without."""
    if cfg.masks.unroll is not None:
        return cfg.masks.unroll
    return 2 if cfg.model.get("recurrent") and cfg.steps > 1 else 1


def whole_partitions(cfg: DictConfig) -> bool:
    """Whether a configuration's network is trained on whole partitions."""
    return getattr(get_class(cfg.model._target_), "whole_partitions", False)


def import_own_code(cfg: DictConfig) -> None:
    """Import what a run's configuration names, ITALIC's or one's own.

    Raises:
        ExtensionError: it is not there, or its model file could not name it.
    """
    kinds = {cfg.model._target_: type, cfg.base._target_: type, cfg.masks.order: object}
    for name, kind in kinds.items():
        if "." in name:
            import_own(name.rpartition(".")[0])
            own(name, kind)


def build_datamodule(cfg: DictConfig) -> StepMasks:
    """The DataModule of a run: its images, base code and masks."""
    import_own_code(cfg)
    if whole_partitions(cfg) and cfg.masks.unroll is not None:
        raise RunError(
            "the network is trained on whole partitions: expected masks.unroll=null, or model=rnan"
        )
    settings = dict(OmegaConf.to_container(cfg.datamodule, resolve=True))  # type: ignore[arg-type]
    settings["images"] = build_images(cfg)
    return StepMasks(
        bases=build_bases(cfg),
        schedule=build_schedule(cfg),
        steps=cfg.steps,
        whole_partitions=whole_partitions(cfg),
        unroll=unroll(cfg),
        min_steps=cfg.masks.min_steps,
        max_steps=cfg.masks.max_steps,
        **settings,
    )


def build_schedule(cfg: DictConfig) -> Schedule:
    """Which pixels are coded in which step while the network of a configuration is trained.

    Its own `planned` sizes come later, with its model: until then those of `masks.plans`, if named.

    Raises:
        RunError: sizes for another number of steps, or `masks.plans` names a model that has none,
            or for another order of the pixels.
        ModelError: it names no model, or a damaged one.
    """
    masks = cfg.masks
    if OmegaConf.is_list(masks.sizes) and len(masks.sizes) != cfg.steps:
        raise RunError(
            f"the step sizes must be {cfg.steps} numbers above 0, one for each step; "
            f"got {masks.sizes}"
        )
    if masks.plans is None:
        return Schedule(masks.order, masks.sizes, masks.exponent)
    own = load_model(masks.plans).recipe.schedule
    if not own.plans or own.order != masks.order:
        raise RunError(
            f"masks.plans names '{masks.plans}', which has no plans for the order {masks.order}: "
            "expected a model trained with masks.sizes=planned and this order"
        )
    return Schedule(masks.order, "planned", masks.exponent, own.plans)


def build_images(cfg: DictConfig) -> ImageSource:
    """The image source of a configuration."""
    return _instantiated(cfg.datamodule.images)


def build_bases(cfg: DictConfig) -> list[BaseCode]:
    """The base codes of a configuration: the rungs of a ladder, or the only one.

    Raises:
        RunError: settings that make no base code, or a ladder without planned steps.
    """
    base = _instantiated(cfg.base)
    if not isinstance(base, Ladder):
        return [base]
    if cfg.masks.sizes != "planned":
        raise RunError(
            "which rung of a ladder suits how many steps is planned together with their sizes: "
            "expected masks.sizes=planned, or a single base code"
        )
    return base.rungs


def build_network(cfg: DictConfig) -> Network:
    """The estimator network of a configuration, untrained.

    Raises:
        RunError: settings that make none.
        InexactError: it has layers that can't be made exact.
        ExtensionError: it is not there, or its model file could not name it.
    """
    import_own_code(cfg)
    network = _instantiated(cfg.model, **rungs(cfg))
    if not isinstance(network, Network):
        raise RunError(
            f"{cfg.model._target_} is no estimator: expected a subclass of "
            "italic.models.network.Network, such as StepNetwork, see docs/extending.md"
        )
    check_layers(network)
    return network


def rungs(cfg: DictConfig) -> dict[str, int]:
    """The argument of the network that says how many base codes there are, where it needs one."""
    bases = build_bases(cfg)
    with_base = whole_partitions(cfg) and not isinstance(bases[0], NoBase)
    return {"rungs": len(bases)} if len(bases) > 1 or with_base else {}


def build_estimator(cfg: DictConfig) -> Estimator:
    """The LightningModule of a configuration, its network untrained."""
    settings = dict(OmegaConf.to_container(cfg.training, resolve=True))  # type: ignore[arg-type]
    for elsewhere in ("average_decay", "compile", "find_batch_size"):
        settings.pop(elsewhere, None)  # runs of earlier versions lack some
    # The layout in which convolutions are fastest, on processors and GPUs.
    network = build_network(cfg).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if cfg.training.compile:
        network.compile()
    return Estimator(network, steps=cfg.steps, unroll=unroll(cfg), **settings)


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
    cfg = OmegaConf.load(path)
    assert isinstance(cfg, DictConfig)
    return cfg


def find_checkpoint(run_dir: Path) -> Path:
    """The last checkpoint of a run.

    Raises:
        RunError: the run has not saved one.
    """
    path = run_dir / CHECKPOINTS / LAST
    if not path.is_file():
        raise RunError(f"{run_dir} holds no checkpoint yet: expected {CHECKPOINTS}/{LAST} in it")
    return path


def updates(checkpoint: Path) -> int:
    """Updates of the weights that a checkpoint has seen.

    Raises:
        RunError: it is damaged.
    """
    try:
        return torch.load(checkpoint, map_location="cpu", weights_only=False)["global_step"]
    except Exception as error:
        raise RunError(f"{checkpoint} can't be loaded: {reason(error)}") from error


def load_network(run_dir: Path) -> Network:
    """A run's trained network (the average of its weights), in evaluation mode, on the CPU.

    Raises:
        RunError: no run, no checkpoint, or weights that don't fit the configuration.
    """
    network = build_network(read_config(run_dir))
    path = find_checkpoint(run_dir)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        prefix = "network."
        state = {
            name.removeprefix(prefix): value
            for name, value in checkpoint["state_dict"].items()
            if name.startswith(prefix)
        }
        network.load_state_dict(state)
    except Exception as error:
        raise RunError(f"{path} can't be loaded as the run's network: {reason(error)}") from error
    return network.eval()


def begin_with(network: nn.Module, name: str) -> None:
    """Give an untrained network the weights of a model; more groups or deep blocks change nothing.

    Nor do fewer deep blocks, where those left out are silent: add a constant, whatever they see.

    Args:
        network: without mask branches, if it has more groups than the model.
        name: of a model, or the path of its file.

    Raises:
        RunError: a network that lacks what the model has.
        ModelError: no such model, or a damaged one.
    """
    exact = load_model(name).network
    own = dict(network.named_parameters())
    if any(key not in own for key, _ in exact.named_parameters()):
        drop_silent_blocks(exact)
    state = floating_state(exact)
    unlike = [key for key in state if key not in own or own[key].shape != state[key].shape]
    # What may be added begins as the identity: not so the features of the last step, and gates.
    unlike += [
        key for key in own if key not in state and (key.startswith("fuse.") or ".mask." in key)
    ]
    if unlike:
        raise RunError(
            f"the weights of '{name}' don't fit the network, which differs in {unlike[0]}: "
            "expected the model's own settings under model=…, more groups or deep blocks, or "
            "without its silent ones"
        )
    network.load_state_dict(state, strict=False)
    for index, group in enumerate(getattr(network, "groups", ())):
        if not any(key.startswith(f"groups.{index}.") for key in state):
            if not isinstance(group, ResidualGroup):
                raise RunError(f"the weights of '{name}' lack the network's groups.{index}")
            group.become_identity()


def _instantiated(cfg: DictConfig, **more: Any) -> Any:
    """The object that a configuration node describes; what it refuses, in its own words."""
    try:
        return instantiate(cfg, **more)
    except InstantiationException as error:
        raise RunError(str(error.__cause__ or error)) from error

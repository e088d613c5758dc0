"""From a configuration to its parts, and from a run directory back to its network."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

from italic.coding.base_codes.base import BaseCode, Ladder, NoBase
from italic.coding.base_codes.hevc_headers import BPGError
from italic.coding.exact import InexactError, check_layers, drop_silent_blocks, floating_state
from italic.coding.model_files.model import ModelError, load_model
from italic.datamodules.images import DataError, ImageSource
from italic.datamodules.step_masks import StepMasks
from italic.errors import SettingError, check_at_least
from italic.extensions import ExtensionError
from italic.models.estimator import Estimator
from italic.models.layers import ResidualGroup
from italic.models.network import Network
from italic.run_directory import RunError, find_result, load_checkpoint, read_config
from italic.schedule import Schedule
from italic.training.named_code import check_code, named, targets


def is_refusal(error: Exception) -> bool:
    """Whether an error says of the user's input what is wrong with it: its text is enough.

    Others are errors of programs, in an estimator of one's own for example. Lightning and Hydra
    raise ValueError and TypeError for settings of theirs, and for arguments that a class lacks.
    """
    ours = (RunError, DataError, SettingError, ExtensionError, ModelError, InexactError, BPGError)
    if isinstance(error, (*ours, MisconfigurationException, OSError)):
        return True
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    package = frame.f_globals["__name__"].partition(".")[0]
    libraries = ("pytorch_lightning", "lightning_fabric", "hydra")
    return package in libraries and isinstance(error, ValueError | TypeError)


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
    return getattr(named(cfg.model._target_), "whole_partitions", False)


def build_datamodule(cfg: DictConfig) -> StepMasks:
    """The DataModule of a run: its images, base code and masks."""
    check_code(cfg)
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
    check_code(cfg)
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
    check_at_least(1, {"steps": cfg.steps})
    check_at_least(0, {f"training.{name}": value for name, value in settings.items()})
    check_at_least(0, {"masks.unroll": unroll(cfg)})
    for elsewhere in ("average_decay", "compile", "find_batch_size"):
        settings.pop(elsewhere, None)  # runs of earlier versions lack some
    # The layout in which convolutions are fastest, on processors and GPUs.
    network = build_network(cfg).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if cfg.training.compile:
        network.compile()
    return Estimator(network, steps=cfg.steps, unroll=unroll(cfg), **settings)


def load_network(run_dir: Path) -> Network:
    """A run's result, its network with averaged weights, in evaluation mode, on the CPU.

    Raises:
        RunError: no run, no checkpoint, or weights that don't fit the configuration.
    """
    network = build_network(read_config(run_dir))
    path = find_result(run_dir)
    prefix = "network."
    state = {
        name.removeprefix(prefix): value
        for name, value in load_checkpoint(path)["state_dict"].items()
        if name.startswith(prefix)
    }
    check_fit(network, state, path)
    network.load_state_dict(state)
    return network.eval()


def check_fit(module: nn.Module, state: dict[str, Any], path: Path) -> None:
    """Refuse weights, of a checkpoint at this path, that a module does not have: RunError."""
    own = module.state_dict()
    unlike = [
        name
        for name in dict.fromkeys([*own, *state])
        if name not in own or name not in state or own[name].shape != state[name].shape
    ]
    if unlike:
        raise RunError(
            f"the weights in {path} are not those of the configuration's network, which differs "
            f"in {unlike[0]}: expected the configuration that the run was started with"
        )


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
        settings = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise RunError(f"a setting has no value: {str(error).splitlines()[0]}") from error
    for name in targets(settings):
        named(name, object)
    try:
        return instantiate(settings, **more)
    except InstantiationException as error:
        cause = error.__cause__
        if not isinstance(cause, Exception) or is_refusal(cause):
            raise RunError(str(cause or error)) from error
    raise cause  # an error of the class's own: Hydra would show no traceback

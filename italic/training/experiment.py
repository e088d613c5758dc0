"""Build the parts of a run from its configuration, and load trained weights."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import wandb
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim import Optimizer

from italic.coding.base_codes.base import BaseCode, Ladder, NoBase
from italic.coding.base_codes.hevc_headers import BPGError
from italic.coding.exact import InexactError, check_layers, exchange_modules
from italic.coding.model_files.installed import CardError
from italic.coding.model_files.loading import load_model
from italic.coding.model_files.model import ModelError
from italic.config import TrainingConfig
from italic.datamodules.images import DataError
from italic.datamodules.images.sources import ImageSource
from italic.datamodules.pairs import BaseCodes
from italic.datamodules.partitions import TrainingPartitions
from italic.datamodules.splits import Splits
from italic.datamodules.step_masks import StepMasks
from italic.errors import SettingError, check_range
from italic.extensions import ExtensionError
from italic.models.estimator import Estimator
from italic.models.lattice import LatticeNetwork
from italic.models.network import Network
from italic.run_directory import RunError, find_result, load_checkpoint, read_config
from italic.schedule import Schedule
from italic.training.named_code import check_code, named, targets

MAX_THREADS = 1024  # OpenMP ends the process if it can't create its threads


def is_refusal(error: Exception) -> bool:
    """Whether an error reports invalid user input, so that its message suffices.

    Other errors are programming errors, for example in a user-defined estimator, and need a
    traceback. ValueError and TypeError raised inside Lightning, Hydra or an optimiser of PyTorch
    report invalid settings or unknown arguments of a class.
    """
    ours = RunError, DataError, SettingError, ExtensionError
    of_models = ModelError, CardError, InexactError, BPGError
    if isinstance(error, (*ours, *of_models, MisconfigurationException, wandb.Error, OSError)):
        return True
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    package = frame.f_globals["__name__"].partition(".")[0]
    libraries = ("pytorch_lightning", "lightning_fabric", "hydra")
    of_optimiser = frame.f_globals["__name__"].startswith("torch.optim")
    return (package in libraries or of_optimiser) and isinstance(
        error, ValueError | TypeError | RuntimeError
    )


def check_complete(cfg: DictConfig) -> None:
    """Check that no key of a configuration, or of a part of one, lacks its value.

    Raises:
        RunError: a key has no value; the message has its full name.
    """
    try:
        OmegaConf.to_container(cfg, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise RunError(f"{error.full_key} has no value: expected {error.full_key}=…") from error


def use_threads(number: int) -> None:
    """Set the number of CPU threads of PyTorch; 0 keeps PyTorch's default.

    Raises:
        SettingError: the number is negative, or so large that the threads can't be created.
    """
    check_range("threads", number, 0, MAX_THREADS)
    if number:
        torch.set_num_threads(number)


def unroll(cfg: DictConfig) -> int:
    """Number of steps in a training sample; by default 2 for a recurrent network, else 1."""
    if cfg.masks.unroll is not None:
        return cfg.masks.unroll
    return 2 if cfg.model.get("recurrent") and cfg.steps > 1 else 1


def whole_partitions(cfg: DictConfig) -> bool:
    """Whether the network of a configuration is trained on whole partitions.

    Raises:
        RunError: the configuration names another class than an estimator network.
        ExtensionError: the class does not exist, or a model file could not name it.
    """
    network = named(cfg.model._target_)
    if not issubclass(network, Network):
        raise RunError(
            f"{cfg.model._target_} is not an estimator: expected a subclass of "
            "italic.models.network.Network, such as StepNetwork, see docs/extending.md"
        )
    return issubclass(network, LatticeNetwork)


def build_datamodule(cfg: DictConfig) -> StepMasks:
    """The data module of a configuration: its images, base codes and masks.

    Raises:
        RunError: `masks.unroll` is set for a network that is trained on whole partitions.
        SettingError: a setting is out of range.
    """
    check_code(cfg)
    if whole_partitions(cfg) and cfg.masks.unroll is not None:
        raise RunError(
            "masks.unroll does not apply to a network that is trained on whole partitions: "
            "expected masks.unroll=null, or model=rnan"
        )
    partitions = TrainingPartitions(
        build_schedule(cfg),
        cfg.steps,
        unroll(cfg),
        cfg.masks.min_steps,
        cfg.masks.max_steps,
        cfg.masks.few_steps,
        whole_partitions(cfg),
    )
    settings = dict(OmegaConf.to_container(cfg.datamodule, resolve=True))  # type: ignore[arg-type]
    del settings["images"]
    images = Splits(build_images(cfg), **_taken(Splits, settings))
    base_codes = BaseCodes(build_bases(cfg), **_taken(BaseCodes, settings))
    return StepMasks(images, base_codes, partitions, **settings)


def _taken(constructor: type, settings: dict[str, Any]) -> dict[str, Any]:
    """Remove the arguments of a constructor from the settings of a group, and return them."""
    names = inspect.signature(constructor).parameters
    return {name: settings.pop(name) for name in names if name in settings}


def build_schedule(cfg: DictConfig) -> Schedule:
    """The schedule with which the network of a configuration is trained.

    The network's own `planned` sizes do not exist before its model is exported. Training uses the
    plans of the model `masks.plans`, if set.

    Raises:
        RunError: `masks.sizes` belongs to another number of steps, or the model `masks.plans` has
            no plans or another pixel order, or `masks.sizes` is not planned.
        SettingError: `masks.sizes` or `masks.exponent` is invalid.
        ModelError: the model `masks.plans` does not exist or is damaged.
    """
    masks = cfg.masks
    if OmegaConf.is_list(masks.sizes) and len(masks.sizes) != cfg.steps:
        raise RunError(
            f"the step sizes must be {cfg.steps} numbers above 0, one for each step; "
            f"got {masks.sizes}"
        )
    own = Schedule(masks.order, masks.sizes, masks.exponent)
    if masks.plans is None:
        return own
    planned = load_model(masks.plans).recipe.schedule
    if not planned.plans or planned.order != masks.order:
        raise RunError(
            f"masks.plans names '{masks.plans}', which has no plans for the order {masks.order}: "
            "expected a model trained with masks.sizes=planned and this order"
        )
    if own.sizes != "planned":
        raise RunError(
            f"masks.plans trains and validates in planned steps, but masks.sizes is {masks.sizes}: "
            "expected masks.sizes=planned, or no masks.plans"
        )
    return replace(own, plans=planned.plans)


def build_images(cfg: DictConfig) -> ImageSource:
    """The image source of a configuration."""
    return _instantiated(cfg.datamodule.images)


def build_bases(cfg: DictConfig) -> list[BaseCode]:
    """The base codes of a configuration: the rungs of a ladder, or a single base code.

    Raises:
        RunError: the settings of the base code are invalid, or a ladder has no planned steps.
    """
    base = _instantiated(cfg.base)
    if not isinstance(base, Ladder):
        return [base]
    if cfg.masks.sizes != "planned":
        raise RunError(
            "base=ladder needs planned steps, because planning selects the rung for each number of "
            "steps: expected masks.sizes=planned, or a single base code"
        )
    return base.rungs


def build_network(cfg: DictConfig) -> Network:
    """The untrained estimator network of a configuration.

    Raises:
        RunError: the settings of the network are invalid.
        InexactError: the network must be exact, but has layers without an exact form.
        ExtensionError: the class does not exist, or a model file could not name it.
    """
    check_code(cfg)
    network = _instantiated(cfg.model, **rungs(cfg))
    if is_exact(cfg):
        try:
            check_layers(network)
            exchange_modules(network)  # refuses attention over windows that are too large
        except InexactError as error:
            raise InexactError(
                f"{error}. training.exact=false trains and validates any network, without export"
            ) from error
    return network


def is_exact(cfg: DictConfig) -> bool:
    """Whether the network of a configuration has an exact form, so that it can be exported."""
    return bool(OmegaConf.select(cfg, "training.exact", default=True))


def rungs(cfg: DictConfig) -> dict[str, int]:
    """The argument `rungs` of the network, its number of base codes, if the network needs it."""
    bases = build_bases(cfg)
    with_base = whole_partitions(cfg) and not isinstance(bases[0], NoBase)
    return {"rungs": len(bases)} if len(bases) > 1 or with_base else {}


def build_estimator(cfg: DictConfig) -> Estimator:
    """The LightningModule of a configuration, with an untrained network.

    Raises:
        SettingError: a setting is out of range.
        RunError: as `build_network`.
    """
    settings = dict(OmegaConf.to_container(cfg.training, resolve=True))  # type: ignore[arg-type]
    for of_the_run in inspect.get_annotations(TrainingConfig):
        del settings[of_the_run]
    # Convolutions are fastest in this memory format, on CPUs and GPUs.
    network = build_network(cfg).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if cfg.training.compile:
        network.compile()
    optimiser = build_optimiser(cfg, network)
    lr_schedule = _instantiated(cfg.lr_schedule)
    return Estimator(
        network, cfg.steps, unroll(cfg), **settings, optimiser=optimiser, lr_schedule=lr_schedule
    )


def build_optimiser(cfg: DictConfig, network: Network) -> Callable[..., Optimizer]:
    """The function that makes the optimiser of the named parameters of a network.

    Raises:
        RunError: the class is not an optimiser, or lacks an argument or has no such argument.
        SettingError: a setting is out of range.
    """
    optimiser = _instantiated(cfg.optimiser, _partial_=True)
    name = cfg.optimiser._target_
    if not issubclass(optimiser.func, Optimizer):
        raise RunError(f"{name} is not an optimiser: expected a subclass of torch.optim.Optimizer")
    try:
        inspect.signature(optimiser.func).bind([], **optimiser.keywords)
    except TypeError as error:
        raise RunError(f"the optimiser {name} can't be made: {error}") from error
    optimiser(network.named_parameters())  # checks the settings
    return optimiser  # type: ignore[no-any-return]


def build_callbacks(cfg: DictConfig) -> list[Callback]:
    """The callbacks of the group `callbacks`.

    Raises:
        RunError: one of them is not a callback of Lightning, or rejects its settings.
    """
    callbacks = [_instantiated(node) for node in cfg.get("callbacks", {}).values()]
    for item in callbacks:
        if not isinstance(item, Callback):
            raise RunError(
                f"{type(item).__name__} is not a callback of Lightning: expected a subclass of its "
                "Callback"
            )
    return callbacks


def build_loggers(cfg: DictConfig, run_dir: Path) -> list[Logger]:
    """The loggers in `logger.others`.

    Raises:
        RunError: one of them is not a logger of Lightning, rejects its settings, or its package is
            not installed.
    """
    others = cfg.logger.get("others", {})
    try:
        loggers = [_instantiated(node, save_dir=str(run_dir)) for node in others.values()]
    except ModuleNotFoundError as error:
        raise RunError(f"a logger's package is not installed: {error}") from error
    for item in loggers:
        if not isinstance(item, Logger):
            raise RunError(
                f"{type(item).__name__} is not a logger of Lightning: expected a subclass of its "
                "Logger"
            )
    return loggers


def load_network(run_dir: Path) -> Network:
    """A run's best network, with averaged weights, in evaluation mode, on the CPU.

    Raises:
        RunError: the directory is not a run directory or has no checkpoint, or the weights do not
            match the configuration.
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
    """Check that the names and shapes of a checkpoint's weights match a module.

    Args:
        module: the module.
        state: the weights.
        path: path of the checkpoint, for the error message.

    Raises:
        RunError: names or shapes differ.
    """
    expected = module.state_dict()
    different = [
        name
        for name in dict.fromkeys([*expected, *state])
        if name not in expected or name not in state or expected[name].shape != state[name].shape
    ]
    if different:
        raise RunError(
            f"the weights in {path} do not match the network of the configuration, which differs "
            f"in {different[0]}: expected the configuration and the version of ITALIC with which "
            "the run was started"
        )


def _instantiated(cfg: DictConfig, **more: Any) -> Any:
    """The object that a configuration node describes.

    Raises:
        RunError: the node names no class, or the class rejected its settings; the message is then
            that of the class.
    """
    if not OmegaConf.is_dict(cfg) or "_target_" not in cfg:
        raise RunError(f"{cfg} names no class: expected a mapping with _target_ and its arguments")
    check_complete(cfg)
    settings = OmegaConf.to_container(cfg, resolve=True)
    for name in targets(settings):
        named(name, object)
    try:
        return instantiate(settings, **more)
    except InstantiationException as error:
        cause = error.__cause__
        if not isinstance(cause, Exception) or is_refusal(cause):
            raise RunError(str(cause or error)) from error
    raise cause  # a programming error: raised directly, because Hydra hides its traceback

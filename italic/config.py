"""The structured configuration, registered with Hydra.

The keys of an object's group are the arguments of its constructor, with their types and defaults.
All other keys are declared here.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from operator import or_
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytorch_lightning as pl
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf
from pytorch_lightning.accelerators import Accelerator
from pytorch_lightning.profilers import Profiler
from pytorch_lightning.strategies import Strategy

from italic.coding.base_codes.base import BPG, Ladder, NoBase
from italic.datamodules.images.cifar10 import CIFAR10
from italic.datamodules.images.folder import Folder
from italic.datamodules.images.imagenet import DownsampledImageNet, TinyImageNet
from italic.datamodules.images.photos import Photos
from italic.datamodules.pairs import BaseCodes
from italic.datamodules.partitions import TrainingPartitions
from italic.datamodules.splits import Splits
from italic.datamodules.step_masks import StepMasks
from italic.models.estimator import Estimator
from italic.models.lattice import LatticeNetwork
from italic.models.lr_schedule import StepDecay, WarmupDecay
from italic.models.optimiser import Adam, Muon, multiplies_bfloat16
from italic.models.rnan import RNAN
from italic.schedule import Schedule

# Objects in Lightning's annotations, which no configuration contains: the types of the Trainer's
# arguments accelerator, strategy and profiler beside names.
OBJECTS = (Accelerator, Strategy, Profiler)
# Keys that `schema` can't check, because OmegaConf has no type for them.
ANY_SIZES = ("sizes",)  # a name or a list
ANY_OF_TRAINER = (
    "devices",  # a number, a text or a list
    "max_time",  # a text or a mapping
    "val_check_interval",  # a number, a text or a mapping
    "plugins",  # only objects
)


def schema(
    name: str,
    *constructors: Callable[..., Any],
    leave_out: Collection[str] = (),
    unchecked: Collection[str] = (),
    target: bool = False,
) -> Any:
    """A dataclass whose fields are the arguments of constructors, with their types and defaults.

    An argument without a default must be given: its default is `MISSING`.

    Args:
        name: name of the dataclass, that of the variable in this module to which it is assigned.
        constructors: classes; their arguments must have different names.
        leave_out: arguments that are not keys of the configuration.
        unchecked: arguments whose type is `Any`.
        target: whether a field `_target_` names the class, for Hydra.

    Raises:
        TypeError: OmegaConf can't check an argument that is not in `unchecked`.
    """
    (first, *_) = constructors
    fields: list[Any] = []
    if target:
        fields.append(("_target_", str, f"{first.__module__}.{first.__qualname__}"))
    for constructor in constructors:
        hints = get_type_hints(constructor.__init__)  # type: ignore[misc]
        for key, parameter in inspect.signature(constructor).parameters.items():
            if key in leave_out:
                continue
            place = f"{key} of {constructor.__qualname__}"
            kind = Any if key in unchecked else checked_type(hints[key], place)
            default = MISSING if parameter.default is parameter.empty else parameter.default
            if isinstance(default, tuple):
                default = field(default_factory=partial(list, default))
            fields.append((key, kind, default))
    made = dataclasses.make_dataclass(name, fields, namespace={"constructors": constructors})
    made.__module__ = __name__  # so that it can be pickled, for launchers of sweeps
    made.__doc__ = inspect.getdoc(first)
    return made


def checked_type(annotation: Any, place: str) -> Any:
    """The type by which OmegaConf checks values of an argument.

    The choices of a `Literal` are checked as values of their types. Objects in a union, such as a
    Strategy of Lightning, are left out, because a configuration can't contain any.

    Raises:
        TypeError: OmegaConf can't check the annotation; the message names its `place`.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in (int, float, bool, str, NoneType):
        return annotation
    if origin is Literal:
        return reduce(or_, {type(choice) for choice in arguments})
    if origin in (list, Sequence):
        return list[checked_type(arguments[0], place)]  # type: ignore[misc]
    if origin in (Union, UnionType):
        kinds = [checked_type(item, place) for item in arguments if item not in OBJECTS]
        if not any(get_origin(kind) is list for kind in kinds):
            return reduce(or_, kinds)
    raise TypeError(
        f"the argument {place} has the type {annotation}, which a configuration can't check: "
        "expected a number, a text, a union of these or a list, or the argument among the "
        "unchecked ones of italic/config.py"
    )


ModelConfig = schema("ModelConfig", RNAN, leave_out={"rungs"}, target=True)
LatticeConfig = schema("LatticeConfig", LatticeNetwork, leave_out={"rungs"}, target=True)
NoBaseConfig = schema("NoBaseConfig", NoBase, target=True)
BPGConfig = schema("BPGConfig", BPG, target=True)
LadderConfig = schema("LadderConfig", Ladder, target=True)
CIFAR10Config = schema("CIFAR10Config", CIFAR10, target=True)
PhotosConfig = schema("PhotosConfig", Photos, target=True)
FolderConfig = schema("FolderConfig", Folder, target=True)
DownsampledConfig = schema("DownsampledConfig", DownsampledImageNet, target=True)
TinyImageNetConfig = schema("TinyImageNetConfig", TinyImageNet, target=True)
MuonConfig = schema("MuonConfig", Muon, leave_out={"parameters"}, target=True)
AdamConfig = schema("AdamConfig", Adam, leave_out={"parameters"}, target=True)
WarmupDecayConfig = schema("WarmupDecayConfig", WarmupDecay, target=True)
StepDecayConfig = schema("StepDecayConfig", StepDecay, target=True)

# The schemas by the names under which the YAML files of conf/ extend them.
MODELS: dict[str, Any] = {"schema": ModelConfig, "lattice_schema": LatticeConfig}
BASES: dict[str, Any] = {"none": NoBaseConfig, "bpg": BPGConfig, "ladder": LadderConfig}
IMAGES: dict[str, Any] = {
    "cifar10": CIFAR10Config,
    "photos": PhotosConfig,
    "folder": FolderConfig,
    "imagenet32": DownsampledConfig,
    "tiny_imagenet": TinyImageNetConfig,
}
OPTIMISERS: dict[str, Any] = {"muon": MuonConfig, "adam": AdamConfig}
LR_SCHEDULES: dict[str, Any] = {"warmup_decay": WarmupDecayConfig, "step": StepDecayConfig}
# Groups whose chosen option defines their keys and types → the schemas.
CHOICES: dict[str, dict[str, Any]] = {
    "model": MODELS,
    "base": BASES,
    "datamodule.images": IMAGES,
    "optimiser": OPTIMISERS,
    "lr_schedule": LR_SCHEDULES,
}


@dataclass
class MasksConfig(
    schema(  # type: ignore[misc]
        "MasksConfig",
        Schedule,
        TrainingPartitions,
        leave_out={"plans", "schedule", "steps", "unroll", "whole_partitions"},
        unchecked=ANY_SIZES,
    )
):
    """Pixel order, partition into steps, and the random partitions of training."""

    # number of consecutive steps in a training sample; 0 for all steps of the fixed partition into
    # `steps`, as in the original ITALIC; None for 2 with a recurrent network and 1 otherwise
    unroll: int | None = None
    # model whose planned partitions replace random partitions in training; None for random ones
    plans: str | None = None


@dataclass
class DataModuleConfig(
    schema(  # type: ignore[misc]
        "DataModuleConfig",
        Splits,
        BaseCodes,
        StepMasks,
        leave_out={"source", "bases", "images", "base_codes", "partitions"},
    )
):
    """The images, their base codes and the batches."""

    images: Any = MISSING  # source of the images; the chosen source defines its keys and types


@dataclass
class TrainingConfig(
    schema(  # type: ignore[misc]
        "TrainingConfig",
        Estimator,
        leave_out={"network", "steps", "unroll", "optimiser", "lr_schedule"},
    )
):
    """Losses, and settings of the run."""

    # decay of the exponential moving average of the weights; smaller in the first updates
    average_decay: float = 0.998
    compile: bool = False  # whether the network is compiled with torch.compile
    # largest batch size to try: datamodule.batch_size is doubled while training fits into memory;
    # 0 keeps datamodule.batch_size
    find_batch_size: int = 0


@dataclass
class LoggerConfig:
    """Logging to Weights & Biases (W&B) and the run's report; a CSV log is always written."""

    wandb: bool = False  # whether the run is logged to W&B
    mode: str = "offline"  # mode of W&B: offline, online or disabled
    project: str = "italic"  # name of the W&B project
    pictures: int = 8  # number of validation images in the panel; 0 for no panel and no curve
    # number of validations between two curves; 0 for a single curve after training
    curve_every: int = 5
    artifact: bool = False  # whether the model is uploaded as a W&B artifact after training
    # whether evaluate.py logs to the W&B run of the training; false for a separate W&B run
    same_run: bool = False
    # loggers of Lightning beside these, by any name: _target_ and arguments of each; they get the
    # run directory as save_dir
    others: dict[str, Any] = field(default_factory=dict)


# All other arguments of Lightning's Trainer; `italic.training.run` sets those that are left out.
TrainerConfig = schema(
    "TrainerConfig",
    pl.Trainer,
    leave_out={"logger", "callbacks", "default_root_dir"},
    unchecked=ANY_OF_TRAINER,
)


@dataclass
class TrainConfig:
    """The configuration of `train.py`."""

    # The chosen option of these groups defines their keys and types. Plugins may add options.
    model: Any = MISSING  # the estimator
    base: Any = MISSING  # the base code
    optimiser: Any = MISSING  # the optimiser
    lr_schedule: Any = MISSING  # the learning rates over the training
    # callbacks of Lightning beside the run's own, by any name: _target_ and arguments of each
    callbacks: dict[str, Any] = field(default_factory=dict)
    datamodule: DataModuleConfig = MISSING
    masks: MasksConfig = field(default_factory=MasksConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)  # type: ignore[valid-type]
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    steps: int = 16  # number of steps in validation, and the default of the exported model
    seed: int = 0  # seed of all random number generators
    threads: int = 0  # number of CPU threads; 0 for PyTorch's default
    resume: str | None = None  # directory of the run to resume
    weights: str | None = None  # name or file of a model whose weights warm-start a new run


@dataclass
class CurveConfig:
    """Keys of mode=curve alone."""

    timed: int = 16  # number of images that are also coded one at a time, to measure times
    tiles: bool = False  # whether the tiles of an image folder are coded, not the whole images
    codecs: bool = True  # whether the classical codecs are measured on the same images


@dataclass
class AttentionConfig:
    """Keys of mode=attention alone."""

    # pixel [row, column], from 0, whose attention is drawn; None for the centre
    pixel: list[int] | None = None
    step: int | None = None  # step, from 1, in which it is drawn; None for the middle step


@dataclass
class EnhanceConfig:
    """Keys of mode=enhance alone."""

    # quantisation parameter of the base code that is enhanced; None for the coarsest one
    qp: int | None = None


@dataclass
class AblationsConfig:
    """Keys of mode=ablations alone."""

    before: str | None = None  # earlier ablations.csv whose rows are included


@dataclass
class EvaluationConfig:
    """Images and figures of an evaluation; a group for each mode that has keys of its own."""

    split: str = "test"  # split of the images: train, validation, test; all of a folder
    limit: int = 0  # number of images, the first ones of the split; 0 for all
    batch_size: int = 64  # number of images that are coded together
    # sizes of the steps, as masks.sizes; a list also gives the number of steps; None for the sizes
    # of the model
    sizes: Any = None
    exponent: float | None = None  # growth exponent of power sizes; None for that of the model
    pictures: int = 4  # number of images or samples in panels, maps, films and grids
    curve: CurveConfig = field(default_factory=CurveConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    enhance: EnhanceConfig = field(default_factory=EnhanceConfig)
    ablations: AblationsConfig = field(default_factory=AblationsConfig)


@dataclass
class EvaluateConfig:
    """The configuration of `evaluate.py`."""

    mode: Any = MISSING  # kind of evaluation, a function; the chosen file defines its arguments
    # metrics beside those of the mode, by the name of the column: _target_ and arguments of each
    metrics: dict[str, Any] = field(default_factory=dict)
    ckpt_path: str | None = None  # run directory of train.py to evaluate
    runs: str | None = None  # directory of several run directories, such as that of a multirun
    weights: Any = None  # name of an installed model, a .safetensors file, or a list of these
    steps: list[int] | None = None  # numbers of steps to evaluate; None for those of the mode
    datamodule: DataModuleConfig | None = None  # source of the images; None for that of training
    evaluate: EvaluationConfig = field(default_factory=EvaluationConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    device: str = "cpu"  # device of the models as PyTorch names it, such as cuda
    threads: int = 0  # number of CPU threads; 0 for PyTorch's default
    output: str | None = None  # directory of the results; None for a new one under evaluations/


def _fastest_precision(accelerator: str) -> str:
    """`trainer.precision` for `trainer.accelerator`: bfloat16 where the hardware supports it."""
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    return "bf16-mixed" if multiplies_bfloat16(device) else "32-true"


def register() -> None:
    """Register the schemas in Hydra's ConfigStore; the files of conf/ extend them."""
    OmegaConf.register_new_resolver("either", lambda first, second: first or second, replace=True)
    OmegaConf.register_new_resolver("fastest_precision", _fastest_precision, replace=True)
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    store.store(name="evaluate_schema", node=EvaluateConfig)
    store.store(group="masks", name="schema", node=MasksConfig)
    store.store(group="training", name="schema", node=TrainingConfig)
    store.store(group="trainer", name="schema", node=TrainerConfig)
    store.store(group="logger", name="schema", node=LoggerConfig)
    store.store(group="datamodule", name="schema", node=DataModuleConfig)
    for name, model in MODELS.items():
        store.store(group="model", name=name, node=model)
    for place, choices in CHOICES.items():
        for name, choice in choices.items() if choices is not MODELS else ():
            store.store(group=place.replace(".", "/"), name=f"{name}_schema", node=choice)

"""The structured configuration: every key with its type and default, registered with Hydra."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import MISSING, OmegaConf

from italic.models.optimiser import multiplies_bfloat16

RNAN = "italic.models.rnan.RNAN"


@dataclass
class ModelConfig:
    """The estimator: `italic.models.rnan.RNAN`."""

    _target_: str = RNAN
    features: int = 64
    groups: int = 9
    components: int = 10
    space_to_depth: int = 1
    attention: bool = True
    attention_window: int = 32
    mask_branch: bool = True
    deep: int | None = None
    leak: float = 0.0
    largest_stride: int = 1
    recurrent: bool = True
    step_embedding: bool = True
    position_period: int = 0
    gradient_checkpointing: bool = False


@dataclass
class LatticeConfig:
    """The estimator for CPUs: `italic.models.lattice.LatticeNetwork`."""

    _target_: str = "italic.models.lattice.LatticeNetwork"
    features: int = 192  # width of the pixel predictor
    blocks: int = 3  # its residual blocks
    window: int = 9  # side of its windows in pixels, odd
    components: int = 5  # logistics of a mixture
    context_features: int = 64  # width of the context network; 0 for no context network
    context_blocks: int = 3  # its residual blocks
    attention_window: int = 16  # side of its attention's windows in positions; 0 for no attention
    leak: float = 0.0625  # slope of the activations below zero, a power of two


@dataclass
class NoBaseConfig:
    """No base code: the estimator starts from mid-grey."""

    _target_: str = "italic.coding.base_codes.base.NoBase"


@dataclass
class BPGConfig:
    """BPG, an HEVC intra picture."""

    _target_: str = "italic.coding.base_codes.base.BPG"
    qp: int = 49  # quality, 0 (best) to 51
    chroma: str = "420"  # 420, 422 or 444


@dataclass
class LadderConfig:
    """Several base codes for one network, for other numbers of steps; needs masks.sizes=planned."""

    _target_: str = "italic.coding.base_codes.base.Ladder"
    # Quality of each rung, 0 (best) to 51; null: no base code. The first is for many steps.
    qps: list[int | None] = field(default_factory=lambda: [None, 40, 20])
    chroma: str = "420"


@dataclass
class CIFAR10Config:
    """CIFAR-10, from torchvision's files or from class folders."""

    _target_: str = "italic.datamodules.images.CIFAR10"
    data_dir: str = "data/cifar10"
    validation: int = 5000
    seed: int = 0
    download: bool = True


@dataclass
class PhotosConfig:
    """Tiles of the photographs that scikit-image brings along."""

    _target_: str = "italic.datamodules.images.Photos"
    size: int = 32
    scale: float = 1.0


@dataclass
class FolderConfig:
    """The images in any directory tree: tiles, or random crops of whole ones."""

    _target_: str = "italic.datamodules.images.Folder"
    path: str = MISSING
    size: int = 32  # side of a tile
    crop: int | None = None  # side of random crops in the place of tiles; needs base=none
    reduced: float = 0.0  # probability of a crop that is taken 1 to 2 times as large and reduced
    validation: float = 0.1
    test: float = 0.1
    seed: int = 0
    cache_dir: str = "cache/images"


@dataclass
class ImageNet32Config:
    """ImageNet downsampled to 32×32 pixels, from its batch files."""

    _target_: str = "italic.datamodules.imagenet.DownsampledImageNet"
    data_dir: str = "data/imagenet32"
    size: int = 32
    validation: int = 10_000
    seed: int = 0
    cache_dir: str = "cache/images"


@dataclass
class ImageNet64Config(ImageNet32Config):
    """ImageNet downsampled to 64×64 pixels."""

    data_dir: str = "data/imagenet64"
    size: int = 64


@dataclass
class TinyImageNetConfig:
    """Tiny ImageNet, from its folders of JPEG files."""

    _target_: str = "italic.datamodules.imagenet.TinyImageNet"
    data_dir: str = "data/tiny-imagenet-200"
    seed: int = 0
    cache_dir: str = "cache/images"


MODELS: dict[str, Any] = {"schema": ModelConfig, "lattice_schema": LatticeConfig}
BASES: dict[str, Any] = {"none": NoBaseConfig, "bpg": BPGConfig, "ladder": LadderConfig}
IMAGES: dict[str, Any] = {
    "cifar10": CIFAR10Config,
    "photos": PhotosConfig,
    "folder": FolderConfig,
    "imagenet32": ImageNet32Config,
    "imagenet64": ImageNet64Config,
    "tiny_imagenet": TinyImageNetConfig,
}


@dataclass
class MasksConfig:
    """Pixel order, partition into steps, and how training draws from them."""

    # nested, normal, raster, quad, uneven_1, uneven_2, or MODULE.NAME of a function of your own
    order: str = "nested"
    # equal, power, a list with a relative size for each step, or planned: the least bits, found
    # when the model is exported; power until then
    sizes: Any = "power"
    exponent: float = 1.0  # growth of power sizes
    unroll: int | None = None  # None: 2 for a recurrent network, else 1; 0: all steps
    min_steps: int = 1  # of the random partitions in training
    max_steps: int = 64
    plans: str | None = None  # model whose planned partitions training takes instead


@dataclass
class DataModuleConfig:
    """`italic.datamodules.step_masks.StepMasks`, without its masks."""

    images: Any = MISSING  # where images come from: keys and types are those of the choice
    cache_dir: str = "cache/pairs"
    ray: str | None = None  # cluster whose workers make the base codes, or local; see docs/scale.md
    batch_size: int = 8
    eval_batch_size: int = 64
    train_limit: int = 0
    eval_limit: int = 0
    by_heart: bool = False
    flip: bool = True  # mirror training images left-right at random
    # With flip, also up-down, and swap rows and columns: all eight symmetries; None: random crops
    transpose: bool | None = None
    workers: int = 0
    resident: bool = False


@dataclass
class TrainingConfig:
    """Losses and optimiser of `italic.models.estimator.Estimator`."""

    learning_rate: float = 1e-3
    body_learning_rate: float = 1.5e-3
    weight_decay: float = 0.01
    warmup: int = 200
    decay_from: float = 0.5
    auxiliary: float = 0.3
    distortion: float = 0.0  # weight of the expectation's error, for better pictures than BPG's
    average_decay: float = 0.998  # of the weights' moving average; less at first
    compile: bool = False  # the network by torch.compile
    # Largest batch to try: datamodule.batch_size is doubled while it fits into memory; 0 leaves it
    find_batch_size: int = 0


@dataclass
class LoggerConfig:
    """Loggers besides the CSV that is always written."""

    wandb: bool = False  # log to Weights & Biases
    mode: str = "offline"  # W&B's: offline, online, disabled
    project: str = "italic"  # W&B's
    pictures: int = 8  # validation images in the report's panel; 0 for no panel and no curve
    curve_every: int = 5  # validations from one curve to the next; 0 for one after training alone
    artifact: bool = False  # the model as a W&B artifact, after training
    same_run: bool = False  # evaluate.py: log to the training's W&B run, not to one of its own


def _trainer_config() -> type:
    """`pytorch_lightning.Trainer`'s own arguments, simple types checked, others as they come."""
    fields: list[Any] = []
    for name, parameter in inspect.signature(pl.Trainer).parameters.items():
        if name in ("logger", "callbacks", "default_root_dir"):
            continue
        kind = str(parameter.annotation)
        checked = {
            "<class 'int'>": int,
            "<class 'bool'>": bool,
            "typing.Optional[int]": int | None,
            "typing.Optional[bool]": bool | None,
            "typing.Optional[str]": str | None,
        }.get(kind, Any)
        fields.append((name, checked, field(default=parameter.default)))
    return dataclasses.make_dataclass("TrainerConfig", fields)


TrainerConfig = _trainer_config()


@dataclass
class TrainConfig:
    """Of `train.py`."""

    # The keys and types of these are those of the choice: ITALIC's below, or your own.
    model: Any = MISSING  # the estimator
    base: Any = MISSING  # the base code
    datamodule: DataModuleConfig = MISSING
    masks: MasksConfig = field(default_factory=MasksConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)  # type: ignore[valid-type]
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    steps: int = 16  # at which a run is validated and codes by default
    seed: int = 0  # of everything random
    threads: int = 0  # of the processor; 0 leaves the choice to PyTorch
    resume: str | None = None  # run directory to go on with
    weights: str | None = None  # model, by name or file, whose weights a new run begins with


@dataclass
class EvaluationConfig:
    """What is measured or drawn, and how."""

    split: str = "test"  # train, validation or test
    limit: int = 0  # only the first N images; 0 for all
    batch_size: int = 64  # images coded at a time
    timed: int = 16  # images that are also coded one by one, for the times at batch 1
    sizes: Any = None  # step sizes as in `masks`; None for the model's own
    exponent: float | None = None  # of `power` sizes; None for the model's own
    codecs: bool = True  # the same images through the classical codecs
    pictures: int = 4  # images (samples) in panels, maps, films, grids
    pixel: list[int] | None = None  # [y, x], from 0, whose attention is drawn; None: the centre
    step: int | None = None  # from 1, in which it is; None: the middle one
    before: str | None = None  # mode=ablations: an ablations.csv whose rows come along
    qp: int | None = None  # mode=enhance: which of a ladder's base codes; None for the coarsest


@dataclass
class EvaluateConfig:
    """Of `evaluate.py`."""

    mode: str = "curve"  # what to do: a name in italic.evaluation.run.MODES
    ckpt_path: str | None = None  # a run directory of train.py
    runs: str | None = None  # a directory with several of them, such as a multirun's
    weights: Any = None  # an installed model's name, a .safetensors file, or a list of these
    steps: list[int] | None = None  # numbers of steps; None: those that suit the mode
    datamodule: DataModuleConfig | None = None  # None for the images trained on
    evaluate: EvaluationConfig = field(default_factory=EvaluationConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    threads: int = 0  # of the processor; 0 leaves the choice to PyTorch
    output: str | None = None  # directory of the results; None for one under evaluations/


def quoted_paths(words: Sequence[str]) -> list[str]:
    """The words of a command line, KEY=PATH so that Hydra reads any path that is there.

    In Hydra's grammar characters such as the second = of ckpt_path=multirun/…/1_steps=4 stand for
    something else.
    """
    return [_quoted(word) for word in words]


def _quoted(word: str) -> str:
    key, _, path = word.partition("=")
    if word.startswith("-") or not path or not os.path.exists(path):
        return word
    with suppress(HydraException):
        value = OverridesParser.create().parse_override(word).value()
        # Numbers, truth values and null are these, whatever lies in the current folder.
        if value == path or isinstance(value, int | float | None):
            return word
    escaped = path.replace("'", r"\'")
    return f"{key}='{escaped}'"


def _fastest_precision(accelerator: str) -> str:
    """`trainer.precision` for `trainer.accelerator`: bfloat16 where the machine computes it."""
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    return "bf16-mixed" if multiplies_bfloat16(device) else "32-true"


def register() -> None:
    """Put the schemas into Hydra's ConfigStore, where conf/*.yaml extend them."""
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
    for name, base in BASES.items():
        store.store(group="base", name=f"{name}_schema", node=base)
    for name, images in IMAGES.items():
        store.store(group="datamodule/images", name=f"{name}_schema", node=images)

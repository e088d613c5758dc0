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
    blocks: int = 3  # number of residual blocks of the pixel predictor
    window: int = 9  # side of the pixel predictor's windows in pixels, an odd number
    components: int = 5  # number of logistics in a mixture
    context_features: int = 64  # width of the context network; 0 for no context network
    context_blocks: int = 3  # number of residual blocks of the context network
    attention_window: int = 16  # side of the attention windows in positions; 0 for no attention
    leak: float = 0.0625  # slope of the activations below zero, a power of two


@dataclass
class NoBaseConfig:
    """No base code: the estimator starts from mid-grey."""

    _target_: str = "italic.coding.base_codes.base.NoBase"


@dataclass
class BPGConfig:
    """One BPG base code: an HEVC intra frame."""

    _target_: str = "italic.coding.base_codes.base.BPG"
    qp: int = 49  # quantisation parameter of HEVC, 0 (best quality) to 51
    chroma: str = "420"  # chroma sub-sampling: 420, 422 or 444


@dataclass
class LadderConfig:
    """A ladder of base codes for one network; each number of steps uses the rung of fewest bits.

    A rung is one base code of the ladder. A ladder needs masks.sizes=planned.
    """

    _target_: str = "italic.coding.base_codes.base.Ladder"
    # quantisation parameter of each rung, 0 (best quality) to 51; null for no base code. Training
    # uses the first rung for half of the images, and for large numbers of steps.
    qps: list[int | None] = field(default_factory=lambda: [None, 40, 20])
    chroma: str = "420"  # chroma sub-sampling of all rungs: 420, 422 or 444


@dataclass
class CIFAR10Config:
    """CIFAR-10, read from torchvision's files or from class folders."""

    _target_: str = "italic.datamodules.images.CIFAR10"
    data_dir: str = "data/cifar10"
    validation: int = 5000
    seed: int = 0
    download: bool = True


@dataclass
class PhotosConfig:
    """Tiles of the photographs that are installed with scikit-image."""

    _target_: str = "italic.datamodules.images.Photos"
    size: int = 32
    scale: float = 1.0


@dataclass
class FolderConfig:
    """All images in a directory tree, as tiles or as random crops."""

    _target_: str = "italic.datamodules.images.Folder"
    path: str = MISSING
    size: int = 32  # side of a tile in pixels
    # side of random crops in pixels, which replace tiles in training; None for tiles. Random crops
    # need base=none.
    crop: int | None = None
    # probability that a random crop is cut 1 to 2 times larger and downscaled to the crop size
    reduced: float = 0.0
    validation: float = 0.1
    test: float = 0.1
    seed: int = 0
    cache_dir: str = "cache/images"


@dataclass
class ImageNet32Config:
    """ImageNet downsampled to 32×32 pixels, read from its batch files."""

    _target_: str = "italic.datamodules.imagenet.DownsampledImageNet"
    data_dir: str = "data/imagenet32"
    size: int = 32
    validation: int = 10_000
    seed: int = 0
    cache_dir: str = "cache/images"


@dataclass
class ImageNet64Config(ImageNet32Config):
    """ImageNet downsampled to 64×64 pixels, read from its batch files."""

    data_dir: str = "data/imagenet64"
    size: int = 64


@dataclass
class TinyImageNetConfig:
    """Tiny ImageNet, read from its folders of JPEG files."""

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
    """Pixel order, partition into steps, and the random partitions of training."""

    # pixel order: nested, normal, raster, quad, uneven_1, uneven_2, or MODULE.NAME of a
    # user-defined function
    order: str = "nested"
    # sizes of the steps: equal, power, a list with one relative size per step, or planned. Planned
    # sizes minimise the bits; they are computed when the model is exported, and power sizes are
    # used until then.
    sizes: Any = "power"
    exponent: float = 1.0  # growth exponent of power sizes
    # number of consecutive steps in a training sample; 0 for all steps; None for 2 with a recurrent
    # network and 1 otherwise
    unroll: int | None = None
    min_steps: int = 1  # smallest number of steps of a random partition in training
    max_steps: int = 64  # largest number of steps of a random partition in training
    # model whose planned partitions replace random partitions in training; None for random ones
    plans: str | None = None


@dataclass
class DataModuleConfig:
    """Settings of `italic.datamodules.step_masks.StepMasks` except its masks."""

    images: Any = MISSING  # source of the images; the chosen source defines its keys and types
    cache_dir: str = "cache/pairs"
    # address of a Ray cluster whose workers compute the base codes, or local for a Ray on this
    # machine; None for local processes without Ray; see docs/scale.md
    ray: str | None = None
    batch_size: int = 8
    eval_batch_size: int = 64
    train_limit: int = 0
    eval_limit: int = 0
    by_heart: bool = False
    flip: bool = True  # whether training images are mirrored left-right at random
    # whether flip uses all eight symmetries of the square: left-right, up-down, and rows swapped
    # with columns. None for true with random crops and false with tiles.
    transpose: bool | None = None
    workers: int = 0
    resident: bool = False


@dataclass
class TrainingConfig:
    """Losses and optimiser of `italic.models.estimator.Estimator`, and settings of the run."""

    learning_rate: float = 1e-3
    body_learning_rate: float = 1.5e-3
    weight_decay: float = 0.01
    warmup: int = 200
    decay_from: float = 0.5
    auxiliary: float = 0.3
    # weight of the error of the expected image in the loss, for the enhancement of BPG images; 0
    # for the bits alone
    distortion: float = 0.0
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


def _trainer_config() -> type:
    """A schema of the arguments of `pytorch_lightning.Trainer`; only simple types are checked."""
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
    """The configuration of `train.py`."""

    # The chosen option of these two groups defines their keys and types. Plugins may add options.
    model: Any = MISSING  # the estimator
    base: Any = MISSING  # the base code
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
class EvaluationConfig:
    """Images, measurements and figures of an evaluation."""

    split: str = "test"  # split of the images: train, validation or test
    limit: int = 0  # number of images, the first ones of the split; 0 for all
    batch_size: int = 64  # number of images that are coded together
    timed: int = 16  # number of images that are also coded one at a time, to measure times
    # whether mode=curve codes the tiles of an image folder instead of the whole images
    tiles: bool = False
    sizes: Any = None  # sizes of the steps, as masks.sizes; None for the sizes of the model
    exponent: float | None = None  # growth exponent of power sizes; None for that of the model
    codecs: bool = True  # whether the classical codecs are measured on the same images
    pictures: int = 4  # number of images or samples in panels, maps, films and grids
    # pixel [row, column], from 0, whose attention mode=attention draws; None for the centre
    pixel: list[int] | None = None
    # Step, from 1, in which mode=attention draws the attention; None for the middle step
    step: int | None = None
    before: str | None = None  # earlier ablations.csv whose rows mode=ablations includes
    # quantisation parameter of the base code that mode=enhance uses; None for the coarsest one
    qp: int | None = None


@dataclass
class EvaluateConfig:
    """The configuration of `evaluate.py`."""

    mode: str = "curve"  # kind of evaluation, a name in italic.evaluation.run.MODES
    ckpt_path: str | None = None  # run directory of train.py to evaluate
    runs: str | None = None  # directory of several run directories, such as that of a multirun
    weights: Any = None  # name of an installed model, a .safetensors file, or a list of these
    steps: list[int] | None = None  # numbers of steps to evaluate; None for those of the mode
    datamodule: DataModuleConfig | None = None  # source of the images; None for that of training
    evaluate: EvaluationConfig = field(default_factory=EvaluationConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    threads: int = 0  # number of CPU threads; 0 for PyTorch's default
    output: str | None = None  # directory of the results; None for a new one under evaluations/


def quoted_paths(words: Sequence[str]) -> list[str]:
    """Command-line words with the path of each KEY=PATH quoted, where that path exists.

    Hydra's grammar gives characters such as the second = of ckpt_path=multirun/…/1_steps=4 a
    special meaning.
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
    for name, base in BASES.items():
        store.store(group="base", name=f"{name}_schema", node=base)
    for name, images in IMAGES.items():
        store.store(group="datamodule/images", name=f"{name}_schema", node=images)

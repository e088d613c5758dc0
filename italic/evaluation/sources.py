"""Model and image sources of evaluate.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from italic import run_directory
from italic.coding.model_files.installed import file_named, file_of_hash
from italic.coding.model_files.loading import load_model
from italic.coding.model_files.model import Model
from italic.coding.streams.codec import Codec
from italic.config import IMAGES
from italic.measuring.metrics import Metric
from italic.run_directory import RunError
from italic.schedule import steps_text
from italic.training.export import exported


class Source(NamedTuple):
    """A model with the configuration of its training images.

    Attributes:
        model: function that loads the model; a run's model may be exported first, which can take
            minutes.
        trained: configuration with `datamodule.images`, the training images; None if there is no
            model card that names them.
        run_dir: run directory of the model; None for a model file.
    """

    model: Callable[[], Model]
    trained: DictConfig | None
    run_dir: Path | None = None


@dataclass(frozen=True)
class Inputs:
    """The input of a mode of evaluate.py.

    Attributes:
        cfg: the complete configuration of evaluate.py.
        models: at least one model, by the name in figures and folders.
        run_dirs: run directories of the models that have one, by the same names.
        images: uint8 (N, H, W, 3); if there are full images, crops of some of them, to be drawn.
        kind: class name of the image source, such as CIFAR10.
        output: existing directory for the results.
        whole: uint8 (H, W, 3) each, the full images of different sizes that are measured; None if
            `images` are measured.
        names: names of the full images; empty if they have none.
        metrics: metrics for further columns of the tables, by name; for modes that use them.
        written: paths of the results below `output`, see `file`.
    """

    cfg: DictConfig
    models: dict[str, Model]
    run_dirs: dict[str, Path]
    images: np.ndarray
    kind: str
    output: Path
    whole: Sequence[np.ndarray] | None = None
    names: Sequence[str] = ()
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    written: set[str] = field(default_factory=set)

    @property
    def measured(self) -> Sequence[np.ndarray] | np.ndarray:
        """The images of the curve, uint8 (H, W, 3) each: full images if any, else `images`."""
        return self.images if self.whole is None else self.whole

    @property
    def pictures(self) -> np.ndarray:
        """The images to draw, uint8 (`evaluate.pictures`, H, W, 3).

        Raises:
            RunError: `evaluate.pictures` is 0.
        """
        if self.cfg.evaluate.pictures < 1:
            raise RunError("this mode draws images: expected evaluate.pictures above 0")
        return self.images[: self.cfg.evaluate.pictures]

    def steps(self, default: Sequence[int]) -> list[int]:
        """The configured numbers of steps, or the default up to the number of pixels.

        Raises:
            RunError: as `asked_steps`.
        """
        asked = asked_steps(self.cfg)
        if asked is not None:
            return asked
        pixels = self.images.shape[1] * self.images.shape[2]
        return [steps for steps in default if steps <= pixels]

    def own_steps(self, model: Model) -> int:
        """The number of sizes that `evaluate.sizes` lists.

        Without a list it is the default number of steps of the model, at most the number of pixels.
        """
        listed = listed_steps(self.cfg)
        return min(model.steps, self.images[0, ..., 0].size) if listed is None else listed

    def planned(self, model: Model) -> Model:
        """A model with the step sizes of `evaluate.sizes` and `evaluate.exponent`, if set."""
        cfg = self.cfg.evaluate
        sizes = list(cfg.sizes) if OmegaConf.is_list(cfg.sizes) else cfg.sizes
        changes = {"sizes": sizes, "exponent": cfg.exponent}
        changes = {key: value for key, value in changes.items() if value is not None}
        return replace(model, recipe=replace(model.recipe, **changes))

    def codec(self, model: Model) -> Codec:
        """The codec of a model with the largest configured number of steps, or its default.

        Raises:
            RunError: as `asked_steps`.
        """
        return self.planned(model).codec(max(self.steps([self.own_steps(model)])))

    def file(self, name: str, model: str | None = None) -> Path:
        """The path of a file that the mode writes now: of all results, or of a model.

        If there are several models, each has a separate folder. A later evaluation with this mode
        in the same directory removes the file if it does not write it.
        """
        folder = self.output if model is None or len(self.models) == 1 else self.output / model
        folder.mkdir(parents=True, exist_ok=True)
        self.written.add((folder / name).relative_to(self.output).as_posix())
        return folder / name


def listed_steps(cfg: DictConfig) -> int | None:
    """The number of steps of the sizes that `evaluate.sizes` lists; None for other sizes."""
    sizes = cfg.evaluate.sizes
    return len(sizes) if OmegaConf.is_list(sizes) else None


def asked_steps(cfg: DictConfig) -> list[int] | None:
    """The configured numbers of steps, by `steps` or a list of sizes; None for the default.

    Raises:
        RunError: the sizes are listed for another number of steps.
    """
    listed, steps = listed_steps(cfg), None if cfg.steps is None else list(cfg.steps)
    if listed is None:
        return steps
    if steps is not None and set(steps) != {listed}:
        raise RunError(
            f"evaluate.sizes lists the sizes of {steps_text(listed)}, but the numbers of steps are "
            f"{steps}: expected steps=[{listed}], or evaluate.sizes=equal, power or planned"
        )
    return [listed]


def find_sources(cfg: DictConfig) -> dict[str, Source]:
    """The models that the configuration of evaluate.py names, by the names of their curves.

    Raises:
        RunError: neither runs nor models are named, or runs in two ways, no run is found, or two
            curves would have the same name.
        ModelError: a model file does not exist or is damaged.
    """
    both = cfg.ckpt_path is not None and cfg.runs is not None
    none = cfg.ckpt_path is None and cfg.runs is None and cfg.weights is None
    if both or none or "" in (cfg.ckpt_path, cfg.runs):  # "" would be the current folder
        raise RunError(
            "expected ckpt_path=RUN_DIR or runs=DIRECTORY_OF_RUNS, or weights=MODEL (or a list of "
            "models), or models beside runs"
        )
    runs = _of_runs(cfg)
    models = {} if cfg.weights is None else _of_files(cfg.weights)
    same = runs.keys() & models.keys()
    if same:
        raise RunError(
            f"a run and a model are both named '{min(same)}', but names of curves must differ: "
            "rename the run directory"
        )
    return runs | models


def _of_runs(cfg: DictConfig) -> dict[str, Source]:
    """The runs in `ckpt_path` or `runs`."""
    if cfg.ckpt_path is not None:
        run_dir = Path(cfg.ckpt_path)
        return {run_directory.name_of(run_dir): _of_run(run_dir)}
    if cfg.runs is None:
        return {}
    parent = Path(cfg.runs)
    found = run_directory.runs_below(parent)
    if not found:
        raise RunError(f"no run in {parent}: expected run directories of train.py with checkpoints")
    names = {parent: run_directory.name_of(parent)}
    return {names.get(path, str(path.relative_to(parent))): _of_run(path) for path in found}


def images_for(cfg: DictConfig, sources: dict[str, Source]) -> DictConfig:
    """A configuration with the images of the evaluation: the configured or the training images.

    Raises:
        RunError: no images are configured, and the models were trained on different or unknown
            images.
    """
    if cfg.datamodule is not None:
        return cfg
    trained = []
    for name, source in sources.items():
        if source.trained is None:
            raise RunError(
                f"no model card says which images {name} was trained on: name the images for the "
                "evaluation, for example datamodule=cifar10"
            )
        trained.append(source.trained)
    if any(other.datamodule.images != trained[0].datamodule.images for other in trained):
        raise RunError(
            "the models were trained on different images: name the images for the comparison, "
            "for example datamodule=cifar10"
        )
    return trained[0]


def _of_run(run_dir: Path) -> Source:
    cfg = run_directory.read_config(run_dir)
    run_directory.find_checkpoint(run_dir)
    return Source(partial(exported, run_dir), cfg, run_dir)


def _of_files(weights: str | ListConfig) -> dict[str, Source]:
    names = [str(name) for name in weights] if OmegaConf.is_list(weights) else [str(weights)]
    if not names or not all(names):
        raise RunError("weights is empty: expected the names or the files of models")
    sources: dict[str, Source] = {}
    for name in names:
        model = load_model(name)
        if model.name in sources:
            raise RunError(
                f"two of the models are named '{model.name}', but names of curves must differ: "
                "rename one of the files, or compare runs by runs=DIRECTORY_OF_RUNS"
            )
        named = file_named(name)
        path = file_of_hash(model.hash) if named is None else named.resolve()
        assert path is not None
        trained = _images_of_card(path.with_suffix(".json"))
        sources[model.name] = Source(partial(load_model, name), trained)
    return sources


def _images_of_card(card: Path) -> DictConfig | None:
    """The training images named in a model card, if their source is one of ITALIC's classes.

    A card may come from an untrusted download, so it must not instantiate any other class.
    """
    if not card.is_file():
        return None
    try:
        content = OmegaConf.create(json.loads(card.read_text()))
        images = OmegaConf.select(content, "configuration.datamodule.images")
        schema = {kind._target_: kind for kind in IMAGES.values()}[images._target_]
        return OmegaConf.create({"datamodule": {"images": OmegaConf.merge(schema, images)}})
    except (OmegaConfBaseException, AttributeError, KeyError, TypeError):
        return None

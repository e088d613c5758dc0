"""What evaluate.py measures: the models of runs, or model files, and the images they are for."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from italic import run_directory
from italic.coding.model_files.installed import file_named, file_of_hash
from italic.coding.model_files.model import Model, load_model
from italic.coding.streams.codec import Codec
from italic.config import IMAGES
from italic.run_directory import CHECKPOINTS, LAST, RunError
from italic.training.export import exported


class Source(NamedTuple):
    """A model, and the configuration of the images that it was trained on.

    model: loads it; that of a run is made first, which may take minutes.
    trained: a configuration with `datamodule.images`; None if no model card says what they were.
    run_dir: where the run lies that it comes from; None for a model file.
    """

    model: Callable[[], Model]
    trained: DictConfig | None
    run_dir: Path | None = None


@dataclass(frozen=True)
class Inputs:
    """What a mode of evaluate.py works on.

    cfg: the whole configuration of evaluate.py.
    models: by the names that figures and folders carry; at least one.
    run_dirs: where those of them lie that come from runs.
    images: uint8 (N, H, W, 3).
    kind: name of the class of their source, such as CIFAR10.
    output: the directory of the results; it is there.
    whole: uint8 (H, W, 3) each, the images of different sizes that the others are crops of; None if
        they are no crops, or the mode needs some of one size.
    """

    cfg: DictConfig
    models: dict[str, Model]
    run_dirs: dict[str, Path]
    images: np.ndarray
    kind: str
    output: Path
    whole: Sequence[np.ndarray] | None = None

    @property
    def measured(self) -> Sequence[np.ndarray] | np.ndarray:
        """What the curve is of: whole images if there are any."""
        return self.images if self.whole is None else self.whole

    @property
    def pictures(self) -> np.ndarray:
        """The images to draw, uint8 (`evaluate.pictures`, H, W, 3).

        Raises:
            RunError: there are to be none.
        """
        if self.cfg.evaluate.pictures < 1:
            raise RunError(f"mode={self.cfg.mode} draws images: expected evaluate.pictures above 0")
        return self.images[: self.cfg.evaluate.pictures]

    def steps(self, suiting: Sequence[int]) -> list[int]:
        """The numbers of steps asked for; without any, those suiting the mode and the images."""
        if self.cfg.steps is not None:
            return list(self.cfg.steps)
        pixels = self.images.shape[1] * self.images.shape[2]
        return [steps for steps in suiting if steps <= pixels]

    def own_steps(self, model: Model) -> int:
        """A model's own number of steps, or as many as an image has pixels if it has fewer."""
        return min(model.steps, self.images[0, ..., 0].size)

    def planned(self, model: Model) -> Model:
        """A model with the step sizes asked for by `evaluate.sizes` and `evaluate.exponent`."""
        asked = self.cfg.evaluate
        sizes = list(asked.sizes) if OmegaConf.is_list(asked.sizes) else asked.sizes
        changes = {"sizes": sizes, "exponent": asked.exponent}
        changes = {key: value for key, value in changes.items() if value is not None}
        return replace(model, recipe=replace(model.recipe, **changes))

    def codec(self, model: Model) -> Codec:
        """A model's codec in the largest number of steps asked for; without any, in its own."""
        return self.planned(model).codec(max(self.steps([self.own_steps(model)])))

    def folder(self, name: str) -> Path:
        """Where the results of one of the models go: its own folder if there are several."""
        folder = self.output if len(self.models) == 1 else self.output / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def find_sources(cfg: DictConfig) -> dict[str, Source]:
    """What the configuration of evaluate.py names, by the names that the curves carry.

    Raises:
        RunError: nothing is named, or in two ways; or no run is found where one is named.
        ModelError: a model file that is unknown or damaged.
    """
    given = sum(value is not None for value in (cfg.ckpt_path, cfg.runs, cfg.weights))
    if given != 1 or "" in (cfg.ckpt_path, cfg.runs):  # which would be the current folder
        raise RunError(
            "expected exactly one of ckpt_path=RUN_DIR, runs=DIRECTORY_OF_RUNS and weights=MODEL "
            "(or a list of models)"
        )
    if cfg.weights is not None:
        return _of_files(cfg.weights)
    if cfg.ckpt_path is not None:
        run_dir = Path(cfg.ckpt_path)
        return {run_dir.name: _of_run(run_dir)}
    parent = Path(cfg.runs)
    # Not by their configurations: W&B writes some too, and a sweep's run may have failed.
    found = sorted(path.parent.parent for path in parent.glob(f"**/{CHECKPOINTS}/{LAST}"))
    if not found:
        raise RunError(
            f"no run lies below {parent}: expected directories of train.py, with checkpoints"
        )
    return {str(path.relative_to(parent)): _of_run(path) for path in found}


def images_for(cfg: DictConfig, sources: dict[str, Source]) -> DictConfig:
    """A configuration with the images to measure on: those asked for, else those trained on.

    Raises:
        RunError: the models were trained on different images, or on unknown ones.
    """
    if cfg.datamodule is not None:
        return cfg
    trained = []
    for name, source in sources.items():
        if source.trained is None:
            raise RunError(
                f"no model card says which images {name} was trained on: name those to evaluate "
                "it on, for example datamodule=cifar10"
            )
        trained.append(source.trained)
    if any(other.datamodule.images != trained[0].datamodule.images for other in trained):
        raise RunError(
            "the models were trained on different images: name those to compare them on, "
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
        raise RunError("expected the names or the files of models in weights=")
    sources: dict[str, Source] = {}
    for name in names:
        model = load_model(name)
        if model.name in sources:
            raise RunError(
                f"two of the models are named '{model.name}', and so would be their curves: "
                "rename one, or compare runs by runs=DIRECTORY_OF_RUNS"
            )
        named = file_named(name)
        path = file_of_hash(model.hash) if named is None else named.resolve()
        assert path is not None
        sources[model.name] = Source(partial(load_model, name), _on_card(path.with_suffix(".json")))
    return sources


def _on_card(card: Path) -> DictConfig | None:
    """The images that a model card names, if they are of a kind that ITALIC declares.

    A card comes along with a downloaded file: no other class may be made from what it says.
    """
    if not card.is_file():
        return None
    try:
        said = OmegaConf.create(json.loads(card.read_text()))
        images = OmegaConf.select(said, "configuration.datamodule.images")
        schema = {kind._target_: kind for kind in IMAGES.values()}[images._target_]
        return OmegaConf.create({"datamodule": {"images": OmegaConf.merge(schema, images)}})
    except (OmegaConfBaseException, AttributeError, KeyError, TypeError):
        return None

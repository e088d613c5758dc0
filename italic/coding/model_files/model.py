"""Model files: an exact network with all that a decoder needs besides a compressed file.

A model is one .safetensors file: the tensors, and a JSON text under the key `italic` of its
metadata. The SHA-256 of the whole file names the model; compressed files hold its first 8 bytes.
"""

from __future__ import annotations

import hashlib
import json
import reprlib
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from italic.atomic import write_whole
from italic.coding import exact
from italic.coding.base_codes.base import BPG, BaseCode
from italic.coding.files.container import Plan
from italic.coding.model_files.installed import (
    ENHANCER,
    SEARCH_PATH,
    SUFFIX,
    WEIGHTS,
    file_named,
    file_of_hash,
    installed_models,
    sha256_of,
)
from italic.coding.model_files.recipe import NETWORKS as NETWORKS  # for those who save models
from italic.coding.model_files.recipe import Recipe, recipe_of
from italic.coding.streams.codec import Codec
from italic.errors import reason
from italic.extensions import ExtensionError
from italic.models.network import Network

FORMAT = 3  # of model files, and of how streams are made with them
READ = (2, FORMAT)  # formats that are read: in 2 all networks are of the kind rnan
DEFAULT = "cifar10"
FINER = 10  # in qp: so much finer than what a model was trained on, BPG gains no more from it


class ModelError(ValueError):
    """A model that is unknown, damaged, or of another version."""


@dataclass(frozen=True, eq=False)
class Model:
    """An exact network, its base code and its plan of steps.

    Attributes:
        name: of its file, without the suffix.
        sha256: of its file, 64 hexadecimal digits.
        recipe: what it was made with.
        network: the exact network.
    """

    name: str
    sha256: str
    recipe: Recipe
    network: Network

    @property
    def hash(self) -> bytes:
        """What compressed files name the model by: 8 bytes."""
        return bytes.fromhex(self.sha256)[:8]

    @property
    def steps(self) -> int:
        """The number of steps that it codes in unless told otherwise."""
        return self.recipe.steps

    @property
    def bases(self) -> list[BaseCode]:
        """New coders of its base codes."""
        return self.recipe.bases

    def enhancer(self, steps: int, qp: int) -> Codec:
        """A codec that starts from BPG, of the base codes the one with the nearest qp.

        Raises:
            ModelError: none of its base codes is BPG, or all are much coarser than this qp.
        """
        rungs = {rung: base.qp for rung, base in enumerate(self.bases) if isinstance(base, BPG)}
        if not rungs:
            raise ModelError(
                f"the model '{self.name}' does not start from BPG: expected one that does, such as "
                f"{ENHANCER}"
            )
        rung = min(rungs, key=lambda rung: abs(rungs[rung] - qp))
        if qp < rungs[rung] - FINER:
            raise ModelError(
                f"a BPG file of qp {qp} is better than what the model '{self.name}' would make of "
                f"it: that one was trained on qp {', '.join(map(str, sorted(rungs.values())))}"
            )
        return self.codec(steps, rung=rung)

    def codec(self, steps: int, plan: Plan | None = None, rung: int | None = None) -> Codec:
        """The codec of a number of steps, by the model's own plan and rung unless given others."""
        recipe = self.recipe
        schedule = recipe.schedule if plan is None else plan.schedule(recipe.schedule)
        if rung is None:
            most = max(map(int, recipe.rungs), default=0)
            rung = recipe.rungs.get(str(min(steps, most)), 0)
        return Codec(self.network, self.bases[rung], schedule, steps, rung)


def save_model(path: Path, network: Network, recipe: Recipe) -> str:
    """Write a model file, whole or not at all.

    Args:
        path: its name ends in .safetensors.
        network: an exact network, see `exact.make_exact`.
        recipe: what goes with it.

    Returns:
        The file's SHA-256, in hexadecimal digits.
    """
    text = json.dumps({"format": FORMAT, **asdict(recipe)}, sort_keys=True)
    data = save(exact.integer_state(network), {"italic": text})
    write_whole(path, data)
    return hashlib.sha256(data).hexdigest()


def load_model(name: str | Path | Model | None = None) -> Model:
    """Load a model by its path, or by its name among the installed ones.

    Args:
        name: None for the default model; a model itself is given back. Which texts are paths:
            see `file_named`.

    Raises:
        ModelError: no such model, a damaged file, or one with code of one's own that is not
            imported, see `italic.extensions`.
    """
    if isinstance(name, Model):
        return name
    if name == "" or not isinstance(name, str | Path | None):
        raise ModelError(
            "expected the name of an installed model or the path of a model's file; got "
            f"{reprlib.repr(name)}"
        )
    name = DEFAULT if name is None else name
    if path := file_named(name):
        if not path.is_file():
            raise ModelError(f"there is no model file {path}")
        return _load(path.resolve())
    installed = {found.stem: found for found in reversed(installed_models())}
    if str(name) in installed:
        return _load(installed[str(name)])
    if not installed:
        raise ModelError(
            f"there is no model '{name}', nor any other in {WEIGHTS} or in the folders that the "
            f"environment variable {SEARCH_PATH} names: train one (train.py leaves a "
            f"model{SUFFIX} in the directory of its run), or name a model's file, with --model"
        )
    raise ModelError(
        f"there is no model '{name}': expected the path of a {SUFFIX} file, or one of the "
        f"installed models: {', '.join(sorted(installed))}"
        + (f"; the file of this name is ./{name}" if Path(name).is_file() else "")
    )


def model_of(hash: bytes, model: Model | None = None) -> Model:
    """The model that a compressed file names by the first 8 bytes of its SHA-256.

    Args:
        hash: these bytes.
        model: the one that it is expected to be; None for an installed one.

    Raises:
        ModelError: it is another one, or not installed.
    """
    if model is not None and model.hash == hash:
        return model
    path = file_of_hash(hash)
    if model is not None:
        name = f"'{path.stem}' ({hash.hex()})" if path else f"{hash.hex()}, which is not installed"
        raise ModelError(
            f"the file was not made with the model '{model.name}' ({model.hash.hex()}), but with "
            f"{name}: decode it with that one"
        )
    if path is None:
        raise ModelError(
            f"the file was made with the model {hash.hex()}, which is not installed: name its "
            f"{SUFFIX} file with --model, or the folder of that file in the environment variable "
            f"{SEARCH_PATH}"
        )
    return _load(path)


def _load(path: Path) -> Model:
    """The model of a file; its hash must be the one on its card, if there is a card."""
    card = path.with_suffix(".json")
    try:
        sha256 = sha256_of(path)
        if card.is_file() and json.loads(card.read_text())["sha256"] != sha256:
            raise ModelError(
                f"the model file {path} is not the one that {card.name} describes: its SHA-256 is "
                f"{sha256}; get both again"
            )
        return _loaded(path, sha256)
    except ModelError:
        raise
    except ExtensionError as error:
        raise ModelError(f"the model file {path} can't be used: {error}") from error
    except Exception as error:  # a file from anywhere may hold anything
        raise ModelError(
            f"the model file {path} is damaged: {reason(error)}; get it again"
        ) from error


@lru_cache(maxsize=4)
def _loaded(path: Path, sha256: str) -> Model:
    with safe_open(path, "pt") as file:
        text = json.loads((file.metadata() or {})["italic"])
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    version = text.pop("format")
    if type(version) is not int or version not in READ:
        raise ModelError(
            f"the model file {path} has format {version}, expected {FORMAT}: "
            + ("update ITALIC" if version > FORMAT else "export its run again, or get a newer one")
        )
    recipe = recipe_of(text)
    if version == 2 and recipe.network.get("kind", "rnan") != "rnan":
        raise ModelError(f"the model file {path} has format 2, which has no such network")
    exact.forks_compute_with_one_thread()
    network = _network(recipe, state)
    exact.load_integer_state(network, state)
    exact.check(network)
    return Model(path.stem, sha256, recipe, network)


class _WithoutRandomWeights(TorchFunctionMode):
    """Networks that are made in this context have weights of no particular values."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Leave out what draws weights, which takes long and PyTorch's compiler on "meta"."""
        if function in (nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.normal_):
            return kwargs["tensor"]
        return function(*args, **kwargs or {})


def _network(recipe: Recipe, state: dict[str, Tensor]) -> Network:
    """The exchanged network of a recipe, whose tensors are as those of a state.

    It is made without memory first: a small file may ask for a network of any size. And without a
    trace in the random numbers of the host program.
    """
    make, has_own = recipe.network_maker(), recipe.has_own_network
    for device in ("meta", "cpu"):
        keep_random_state = torch.random.fork_rng(devices=[], enabled=has_own)
        try:
            with keep_random_state, torch.device(device), _WithoutRandomWeights():
                network = exact.exchange_modules(make()).float()  # whatever the default type
        except RuntimeError:
            if device == "meta" and has_own:  # its class may need numbers
                continue
            raise
        _check_tensors(network, state)
    return network


def _check_tensors(network: Network, state: dict[str, Tensor]) -> None:
    wanted = exact.state_types(network)
    found = {name: (value.dtype, tuple(value.shape)) for name, value in state.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise ValueError(
                f"its tensor {name} is {_shown(found.get(name))}: its settings ask for "
                f"{_shown(wanted.get(name))}"
            )


def _shown(tensor: tuple[torch.dtype, tuple[int, ...]] | None) -> str:
    """A tensor's type and shape."""
    return "none" if tensor is None else f"{str(tensor[0]).removeprefix('torch.')} {tensor[1]}"

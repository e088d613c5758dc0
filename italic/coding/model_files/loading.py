"""Loading model files: by name, by path, or by the hash in a compressed file."""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from italic.coding import exact
from italic.coding.model_files.installed import (
    DEFAULT,
    SEARCH_PATH,
    SUFFIX,
    WEIGHTS,
    declarations,
    file_named,
    file_of_hash,
    installed_models,
    sha256_of,
)
from italic.coding.model_files.model import FORMAT, Model, ModelError
from italic.coding.model_files.recipe import Recipe, recipe_of
from italic.errors import reason
from italic.extensions import ExtensionError
from italic.models.network import Network


def load_model(
    name: str | Path | Model | None = None, device: str | torch.device | None = None
) -> Model:
    """Load a model by its path, or an installed model by its name.

    Args:
        name: path or name, distinguished as in `file_named`; None for the default model. A `Model`
            is not loaded again.
        device: device of the network as PyTorch names it, such as "cpu" or "cuda:1"; None for that
            of `on_device`, otherwise for the CPU, or the device of a `Model`. That another device
            than the CPU decodes what the CPU has coded, or the reverse, is not promised.

    Raises:
        ModelError: there is no such model, its file is damaged, it needs a plugin that is not
            enabled, see `italic.extensions`; or there is no such device.
    """
    if device is not None:
        with on_device(device):
            return load_model(name)
    if isinstance(name, Model):
        return _placed(name)
    if name == "" or not isinstance(name, str | Path | None):
        raise ModelError(
            "expected the name of an installed model or the path of a model file; got "
            f"{reprlib.repr(name)}"
        )
    name = DEFAULT if name is None else name
    if path := file_named(name):
        if not os.path.isfile(path):
            raise ModelError(f"there is no model file {path}")
        return _load(path.resolve())
    installed = {found.stem: found for found in reversed(installed_models())}
    if str(name) in installed:
        return _load(installed[str(name)])
    if not installed:
        raise ModelError(
            f"there is no model '{name}', nor any other in {WEIGHTS} or in the folders of the "
            f"environment variable {SEARCH_PATH}: train one (train.py writes model{SUFFIX} to the "
            "run directory), or name a model file with --model"
        )
    raise ModelError(
        f"there is no model '{name}': expected the path of a {SUFFIX} file, or one of the "
        f"installed models: {', '.join(sorted(installed))}"
        + (f"; the file of this name is ./{name}" if os.path.isfile(name) else "")
    )


_device: ContextVar[torch.device | None] = ContextVar("device", default=None)


@contextmanager
def on_device(device: str | torch.device) -> Iterator[None]:
    """Load models onto a device while the context is active, unless `load_model` names another.

    Raises:
        ModelError: there is no such device.
    """
    token = _device.set(_checked(device))
    try:
        yield
    finally:
        _device.reset(token)


def _placed(model: Model) -> Model:
    """The model on the device of `on_device`, if that is active."""
    device = _device.get()
    return model if device in (None, model.device) else _moved(model, device)


def _checked(device: str | torch.device) -> torch.device:
    """A device with its index, on which tensors hold values; ModelError."""
    try:
        tensor = torch.zeros(1, device=device)
        tensor.item()  # fails on the device "meta"
        return tensor.device
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ModelError(
            f"there is no device {reprlib.repr(device)}: expected a device that PyTorch can use "
            "here, such as cpu"
        ) from error


@lru_cache(maxsize=4)
def _moved(model: Model, device: torch.device) -> Model:
    """A copy of a model on another device."""
    return replace(model, network=deepcopy(model.network).to(device))


def enhancer_for(qp: int) -> Model:
    """The installed model for the enhancement of BPG files of a quality.

    Of the models that declare to be for enhancement, it is the one with the nearest qp; of several,
    the one trained on the fewest qps.

    Raises:
        ModelError: there is no such model.
        CardError: a model card is damaged.
    """
    names = [name for name, each in declarations().items() if each.purpose == "enhancement"]
    models = [model for model in map(load_model, names) if model.base_qps]
    if not models:
        raise ModelError(
            "no installed model declares to be for the enhancement of BPG files: name one with a "
            "BPG base code by --model"
        )

    def distance(model: Model) -> tuple[int, int]:
        qps = model.base_qps
        return min(abs(qp - each) for each in qps), len(qps)

    return min(models, key=distance)


def model_of(hash: bytes, model: Model | None = None) -> Model:
    """The model that a compressed file was made with.

    Args:
        hash: the first 8 bytes of the model's SHA-256, from the compressed file.
        model: the expected model; None to search the installed models.

    Raises:
        ModelError: the file was made with another model, or with one that is not installed.
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
    """Load a model file; if there is a model card, its SHA-256 must match."""
    card = path.with_suffix(".json")
    try:
        sha256 = sha256_of(path)
        if card.is_file() and json.loads(card.read_text())["sha256"] != sha256:
            raise ModelError(
                f"the model file {path} is not the one that {card.name} describes: its SHA-256 is "
                f"{sha256}; get both again"
            )
        return _placed(_loaded(path, sha256))
    except ModelError:
        raise
    except ExtensionError as error:
        raise ModelError(f"the model file {path} can't be used: {error}") from error
    except Exception as error:  # an untrusted file can cause exceptions of any type
        raise ModelError(
            f"the model file {path} is damaged: {reason(error)}; get it again"
        ) from error


@lru_cache(maxsize=4)
def _loaded(path: Path, sha256: str) -> Model:
    with safe_open(path, "pt") as file:
        text = json.loads((file.metadata() or {})["italic"])
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    version = text.pop("format")
    if type(version) is not int or version != FORMAT:
        raise ModelError(
            f"the model file {path} has format {version}, expected {FORMAT}: "
            + ("update ITALIC" if version > FORMAT else "export its run again, or get a newer one")
        )
    recipe = recipe_of(text)
    exact.forks_compute_with_one_thread()
    network = _network(recipe, state)
    exact.load_integer_state(network, state)
    exact.check(network)
    return Model(path.stem, sha256, recipe, network)


class _WithoutInitialisation(TorchFunctionMode):
    """Context in which networks are created without initialising their weights."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Skip random initialisation: it is slow, and on "meta" it loads PyTorch's compiler."""
        if function in (nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.normal_):
            return kwargs["tensor"]
        return function(*args, **kwargs or {})


def _network(recipe: Recipe, state: dict[str, Tensor]) -> Network:
    """Create the exact network of a recipe and check its tensors against a state.

    The network is created on the device "meta" first and checked before memory is allocated, since
    a small file may claim a network of any size. The host program's random state is not changed.
    """
    make, is_plugin = recipe.network_maker(), recipe.has_plugin_network
    for device in ("meta", "cpu"):
        keep_random_state = torch.random.fork_rng(devices=[], enabled=is_plugin)
        try:
            with keep_random_state, torch.device(device), _WithoutInitialisation():
                network = exact.exchange_modules(make()).float()  # for any default type
        except RuntimeError:
            if device == "meta" and is_plugin:  # a user's class may need real tensors
                continue
            raise
        _check_tensors(network, state)
    return network


def _check_tensors(network: Network, state: dict[str, Tensor]) -> None:
    expected = exact.state_types(network)
    found = {name: (value.dtype, tuple(value.shape)) for name, value in state.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"its tensor {name} is {_shown(found.get(name))}: expected "
                f"{_shown(expected.get(name))} for its settings"
            )


def _shown(tensor: tuple[torch.dtype, tuple[int, ...]] | None) -> str:
    """A tensor's type and shape."""
    return "none" if tensor is None else f"{str(tensor[0]).removeprefix('torch.')} {tensor[1]}"

"""Model files: an exact network with all that a decoder needs besides a compressed file.

A model is one .safetensors file: the tensors, and a JSON text under the key `italic` of its
metadata. The SHA-256 of the whole file names the model; compressed files hold its first 8 bytes.
"""

from __future__ import annotations

import hashlib
import json
import reprlib
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save

from italic.coding import exact
from italic.coding.base import BPG, BaseCode, Ladder, NoBase
from italic.coding.codec import Codec
from italic.coding.container import Plan
from italic.coding.files import write_whole
from italic.coding.model_files import (
    ENHANCER,
    SEARCH_PATH,
    SUFFIX,
    WEIGHTS,
    file_of_hash,
    installed_models,
    sha256_of,
)
from italic.extensions import ExtensionError, own
from italic.models.lattice import LatticeNetwork
from italic.models.network import Network
from italic.models.rnan import RNAN
from italic.schedule import Schedule

FORMAT = 3  # of model files, and of how streams are made with them
READ = (2, FORMAT)  # formats that are read: in 2 all networks are of the kind rnan
DEFAULT = "cifar10"
NETWORKS: dict[str, type[Network]] = {"rnan": RNAN, "lattice": LatticeNetwork}
FINER = 10  # in qp: so much finer than what a model was trained on, BPG gains no more from it


class ModelError(ValueError):
    """A model that is unknown, damaged, or of another version."""


@dataclass(frozen=True)
class Recipe:
    """Everything about a model but its tensors; plain values, as they stand in the file.

    Attributes:
        network: `kind`, a key of `NETWORKS`, and the arguments of that class; or `_target_`, the
            name of a class, and its arguments.
        base: None, or the arguments of `BPG`, of `Ladder`, or of the class that `_target_` names.
        steps: by default.
        order: of the pixels, see `Schedule`, as for the sizes of the steps.
        sizes: of the steps.
        exponent: of `power` sizes.
        plans: pixels of each step, by the number of steps in decimal digits.
        rungs: of a ladder, by the number of steps; that of the most steps holds for still more.
    """

    network: dict[str, Any]
    base: dict[str, Any] | None
    steps: int
    order: str
    sizes: str | list[float]
    exponent: float
    plans: dict[str, list[int]] = field(default_factory=dict)
    rungs: dict[str, int] = field(default_factory=dict)

    @cached_property
    def schedule(self) -> Schedule:
        """Which pixels are coded in which step."""
        plans = {int(steps): sizes for steps, sizes in self.plans.items()}
        return Schedule(self.order, self.sizes, self.exponent, plans)


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
        base = self.recipe.base
        if base is None:
            return [NoBase()]
        if "_target_" in base:
            return [_named(base)]
        return Ladder(**base).rungs if "qps" in base else [BPG(**base)]

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
        name: None for the default model; a model itself is given back.

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
    path = Path(DEFAULT if name is None else name)
    if path.suffix == SUFFIX or path.is_file():
        if not path.is_file():
            raise ModelError(f"there is no model file {path}")
        return _load(path.resolve())
    installed = {found.stem: found for found in reversed(installed_models())}
    if str(path) in installed:
        return _load(installed[str(path)])
    if not installed:
        raise ModelError(
            f"there is no model '{path}', nor any other in {WEIGHTS} or in the folders that the "
            f"environment variable {SEARCH_PATH} names: train one (train.py leaves a "
            f"model{SUFFIX} in the directory of its run), or name a model's file, with --model"
        )
    raise ModelError(
        f"there is no model '{path}': expected the path of a {SUFFIX} file, or one of the "
        f"installed models: {', '.join(sorted(installed))}"
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
        raise ModelError(f"the model file {path} is damaged: {error}; get it again") from error


@lru_cache(maxsize=4)
def _loaded(path: Path, sha256: str) -> Model:
    with safe_open(path, "pt") as file:
        text = json.loads((file.metadata() or {})["italic"])
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    version = text.pop("format")
    if version not in READ:
        raise ModelError(
            f"the model file {path} has format {version}, expected {FORMAT}: "
            + ("update ITALIC" if version > FORMAT else "export its run again, or get a newer one")
        )
    recipe = Recipe(**text)
    if version == 2 and recipe.network.get("kind", "rnan") != "rnan":
        raise ModelError(f"the model file {path} has format 2, which has no such network")
    network = exact.exchange_modules(_network(recipe.network).float())  # whatever the default type
    exact.load_integer_state(network, state)
    exact.check(network)
    model = Model(path.stem, sha256, recipe, network)
    model.codec(model.steps)  # what it names is there: the base code ...
    recipe.schedule.partition(1, 1, 1)  # ... and the order
    return model


def _network(settings: dict[str, Any]) -> Network:
    """An untrained network of these settings."""
    if "_target_" in settings:
        return _named(settings)
    arguments = {key: value for key, value in settings.items() if key != "kind"}
    return NETWORKS[settings.get("kind", "rnan")](**arguments)


def _named(settings: dict[str, Any]) -> Any:
    """An object of a class of one's own."""
    arguments = {key: value for key, value in settings.items() if key != "_target_"}
    return own(settings["_target_"], type)(**arguments)

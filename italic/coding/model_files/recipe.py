"""Settings of a model file, and their validation.

Model files are untrusted, so all settings are checked before any object is created from them.
"""

from __future__ import annotations

import inspect
import re
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from italic.coding.base_codes.base import BPG, BaseCode, Ladder, NoBase
from italic.coding.files.container import MAX_AREA, MAX_EXPONENT, MAX_STEPS
from italic.extensions import own
from italic.models.lattice import LatticeNetwork
from italic.models.network import Network
from italic.models.rnan import RNAN
from italic.schedule import SIZES, Schedule

NETWORKS: dict[str, type[Network]] = {"rnan": RNAN, "lattice": LatticeNetwork}


@dataclass(frozen=True)
class Recipe:
    """Settings of a model, as plain values from its file.

    Attributes:
        network: `kind`, a key of `NETWORKS`, and the arguments of that class; or `_target_`, the
            name of a user-defined class, and its arguments.
        base: None, or the arguments of `BPG`, of `Ladder`, or of the class named by `_target_`.
        steps: default number of steps.
        order: pixel order, see `Schedule`.
        sizes: step sizes, see `Schedule`.
        exponent: exponent of `power` sizes.
        plans: numbers of pixels of the steps; keys are numbers of steps in decimal digits.
        rungs: rung of a ladder for each number of steps; the entry with the most steps also applies
            to larger numbers.
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

    @property
    def bases(self) -> list[BaseCode]:
        """New coders of the base codes.

        Raises:
            ValueError: a setting is unknown, of another type, or out of range.
            ExtensionError: a plugin is not enabled.
        """
        base = self.base
        if base is None:
            return [NoBase()]
        if "_target_" in base:
            return [_plugin(base)()]
        kind = Ladder if "qps" in base else BPG
        check_arguments(kind, base, "base")
        base_code = kind(**base)
        return base_code.rungs if isinstance(base_code, Ladder) else [base_code]

    @property
    def has_plugin_network(self) -> bool:
        """Whether the class of the network is user-defined."""
        return "_target_" in self.network

    def network_maker(self) -> Callable[[], Network]:
        """A function that creates an untrained network with these settings.

        Raises:
            ValueError: a setting is unknown or has another type.
            ExtensionError: a plugin is not enabled.
        """
        if self.has_plugin_network:
            return _plugin(self.network)
        arguments = {key: value for key, value in self.network.items() if key != "kind"}
        name = self.network.get("kind", "rnan")
        if not isinstance(name, str) or name not in NETWORKS:
            raise ValueError(
                f"the kind of network is {reprlib.repr(name)}: expected {' or '.join(NETWORKS)}"
            )
        check_arguments(NETWORKS[name], arguments, "network")
        return partial(NETWORKS[name], **arguments)

    def check(self) -> None:
        """Check ranges and consistency of the values; `recipe_of` checks their types.

        Raises:
            ValueError: a value is out of range or inconsistent with another one.
        """
        sizes = [*SIZES, "planned"] if isinstance(self.sizes, str) else range(1, MAX_STEPS + 1)
        _expect(
            (self.sizes if isinstance(self.sizes, str) else len(self.sizes)) in sizes,
            "sizes",
            self.sizes,
            f"{', '.join(SIZES)}, planned, or 1 to {MAX_STEPS} numbers",
        )
        _expect(1 <= self.steps <= MAX_STEPS, "steps", self.steps, f"1 to {MAX_STEPS}")
        _expect(
            0 <= self.exponent <= MAX_EXPONENT,
            "exponent",
            self.exponent,
            f"0 to {MAX_EXPONENT}",
        )
        for name, plan in {"sizes": self.sizes, **self.plans}.items():
            _expect(
                isinstance(plan, str) or all(0 < size <= MAX_AREA for size in plan),
                name if name == "sizes" else f"plans.{name}",
                plan,
                f"numbers above 0, up to {MAX_AREA}",
            )
        for name in (*self.plans, *self.rungs):
            number = re.fullmatch("[1-9][0-9]{0,4}", name) is not None and int(name) <= MAX_STEPS
            _expect(number, "a number of steps", name, f"1 to {MAX_STEPS} in decimal digits")
        for name, plan in self.plans.items():
            _expect(len(plan) == int(name), f"plans.{name}", plan, f"{name} numbers")
        bases = len(self.bases)
        for name, rung in self.rungs.items():
            _expect(0 <= rung < bases, f"rungs.{name}", rung, f"0 to {bases - 1}")
        if not self.has_plugin_network:
            known = inspect.signature(self.network_maker()).parameters["rungs"].default
            _expect(max(1, known) == bases, "network.rungs", known, f"{bases}, the base codes")
        self.schedule.partition(1, 1, 1)  # raises an exception if the order does not exist


def recipe_of(text: Any) -> Recipe:
    """Convert the JSON object of a model file to a recipe.

    Raises:
        ValueError: a setting is missing, unknown, of another type, or out of range.
        ExtensionError: a plugin is not enabled.
    """
    check_arguments(Recipe, text, "recipe")
    recipe = Recipe(**text)
    recipe.check()
    return recipe


def check_arguments(kind: type, arguments: Any, name: str) -> None:
    """Check the arguments of a class.

    Args:
        kind: the class.
        arguments: arguments by name, from JSON.
        name: name of the arguments as a whole in messages.

    Raises:
        ValueError: an argument is missing, unknown, or of another type.
    """
    if not isinstance(arguments, dict):
        raise ValueError(f"{name} is {reprlib.repr(arguments)}: expected settings by their names")
    parameters = inspect.signature(kind).parameters
    hints = get_type_hints(kind.__init__)  # type: ignore[misc]
    for key in arguments:
        if key not in parameters:
            raise ValueError(f"{name} has an unknown setting {reprlib.repr(key)}")
    for key, parameter in parameters.items():
        if key in arguments:
            fits = _fits(arguments[key], hints[key])
            _expect(fits, f"{name}.{key}", arguments[key], str(parameter.annotation))
        elif parameter.default is parameter.empty:
            raise ValueError(f"{name} lacks the setting {key}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value has a type; booleans, NaN and infinities are not numbers."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, each) for each in inner)
    if kind in (list, Sequence):
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if kind is dict:
        return isinstance(value, dict) and all(_fits(item, inner[1]) for item in value.values())
    if hint is float:
        return type(value) in (int, float) and abs(value) < float("inf")
    return hint is Any or type(value) is hint


def _expect(right: bool, name: str, value: Any, expected: str) -> None:
    if not right:
        raise ValueError(f"{name} is {reprlib.repr(value)}: expected {expected}")


def _plugin(settings: dict[str, Any]) -> Callable[[], Any]:
    """A function that creates an object of the user-defined class that `_target_` names."""
    name = settings["_target_"]
    if not isinstance(name, str):
        raise ValueError(f"_target_ is {reprlib.repr(name)}: expected MODULE.NAME of a class")
    arguments = {key: value for key, value in settings.items() if key != "_target_"}
    return partial(own(name, type), **arguments)

"""What a model file says besides its tensors, and the one place where that is checked.

A file may come from anywhere: all of it is checked before anything is made of it.
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
from italic.coding.files.container import MAX_STEPS
from italic.extensions import own
from italic.models.lattice import LatticeNetwork
from italic.models.network import Network
from italic.models.rnan import RNAN
from italic.schedule import SIZES, Schedule

NETWORKS: dict[str, type[Network]] = {"rnan": RNAN, "lattice": LatticeNetwork}
LARGEST_SIZE = 2**32  # of a step: as many pixels as a picture may have
LARGEST_EXPONENT = 655.35  # as in compressed files


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

    @property
    def bases(self) -> list[BaseCode]:
        """New coders of the base codes."""
        base = self.base
        if base is None:
            return [NoBase()]
        if "_target_" in base:
            return [_own(base)()]
        kind = Ladder if "qps" in base else BPG
        check_arguments(kind, base, "base")
        made = kind(**base)
        return made.rungs if isinstance(made, Ladder) else [made]

    @property
    def has_own_network(self) -> bool:
        """Whether the network is of a class of its user's own."""
        return "_target_" in self.network

    def network_maker(self) -> Callable[[], Network]:
        """What makes an untrained network of these settings.

        Raises:
            ValueError: settings that the network does not have, or of other types.
        """
        if self.has_own_network:
            return _own(self.network)
        arguments = {key: value for key, value in self.network.items() if key != "kind"}
        name = self.network.get("kind", "rnan")
        if not isinstance(name, str) or name not in NETWORKS:
            raise ValueError(
                f"the kind of network is {reprlib.repr(name)}: expected {' or '.join(NETWORKS)}"
            )
        check_arguments(NETWORKS[name], arguments, "network")
        return partial(NETWORKS[name], **arguments)

    def check(self) -> None:
        """Refuse values out of range, or that don't go together; types: see `recipe_of`.

        Raises:
            ValueError: there is one.
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
            0 <= self.exponent <= LARGEST_EXPONENT,
            "exponent",
            self.exponent,
            f"0 to {LARGEST_EXPONENT}",
        )
        for name, plan in {"sizes": self.sizes, **self.plans}.items():
            _expect(
                isinstance(plan, str) or all(0 < size <= LARGEST_SIZE for size in plan),
                name if name == "sizes" else f"plans.{name}",
                plan,
                f"numbers above 0, up to {LARGEST_SIZE}",
            )
        for name in (*self.plans, *self.rungs):
            number = re.fullmatch("[1-9][0-9]{0,4}", name) is not None and int(name) <= MAX_STEPS
            _expect(number, "a number of steps", name, f"1 to {MAX_STEPS} in decimal digits")
        for name, plan in self.plans.items():
            _expect(len(plan) == int(name), f"plans.{name}", plan, f"{name} numbers")
        bases = len(self.bases)
        for name, rung in self.rungs.items():
            _expect(0 <= rung < bases, f"rungs.{name}", rung, f"0 to {bases - 1}")
        if not self.has_own_network:
            known = inspect.signature(self.network_maker()).parameters["rungs"].default
            _expect(max(1, known) == bases, "network.rungs", known, f"{bases}, the base codes")
        self.schedule.partition(1, 1, 1)  # the order is there


def recipe_of(text: Any) -> Recipe:
    """The recipe that the JSON of a model file is.

    Raises:
        ValueError: a value is missing, not listed, of another type, or out of range.
        ExtensionError: code of one's own that nobody has named.
    """
    check_arguments(Recipe, text, "recipe")
    recipe = Recipe(**text)
    recipe.check()
    return recipe


def check_arguments(kind: type, arguments: Any, name: str) -> None:
    """Refuse what are no arguments of a class.

    Args:
        kind: the class.
        arguments: from JSON, by their names.
        name: of all of them, in messages.

    Raises:
        ValueError: one is missing, not listed, or of another type.
    """
    if not isinstance(arguments, dict):
        raise ValueError(f"{name} is {reprlib.repr(arguments)}: expected settings by their names")
    parameters = inspect.signature(kind).parameters
    hints = get_type_hints(kind.__init__)  # type: ignore[misc]
    for key in arguments:
        if key not in parameters:
            raise ValueError(f"{name} has a setting {reprlib.repr(key)}, which is not known")
    for key, parameter in parameters.items():
        if key in arguments:
            fits = _fits(arguments[key], hints[key])
            _expect(fits, f"{name}.{key}", arguments[key], str(parameter.annotation))
        elif parameter.default is parameter.empty:
            raise ValueError(f"{name} lacks the setting {key}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of JSON is of a type; truth values are no numbers, nor are NaN and such."""
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


def _own(settings: dict[str, Any]) -> Callable[[], Any]:
    """What makes an object of a class of one's own."""
    name = settings["_target_"]
    if not isinstance(name, str):
        raise ValueError(f"_target_ is {reprlib.repr(name)}: expected MODULE.NAME of a class")
    arguments = {key: value for key, value in settings.items() if key != "_target_"}
    return partial(own(name, type), **arguments)

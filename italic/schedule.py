"""The step schedule: which pixels of an image are coded in which step.

A `Schedule` has the pixel order and the rule for step sizes, for images of any size in any number
of steps. A `Partition` is what comes of it: the steps of images of one size. The mask of the pixels
known before a step is a prefix of the order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Context, Decimal
from functools import cached_property

import numpy as np

from italic.errors import SettingError
from italic.orders import pixel_order

SIZES = ("equal", "power")
LARGEST_STRIDE = 64  # of the lattices that pixels are predicted on
SMALLEST_LATTICE = 16  # pixels of a lattice that contexts are computed from
KEPT = 4  # partitions that a schedule remembers, ...
KEPT_PIXELS = 2**20  # ... of images up to this size


@dataclass(frozen=True, eq=False)
class Partition:
    """The pixels of an H×W image in coding order, cut into steps.

    The lattice of stride s has the pixels whose row and column are multiples of s.

    Attributes:
        height: H.
        width: W.
        order: int64 (H·W,), flat pixel indices in the order of their coding.
        bounds: int64 (steps + 1,), strictly increasing from 0 to H·W: step j codes
            order[bounds[j]:bounds[j + 1]].
    """

    height: int
    width: int
    order: np.ndarray
    bounds: np.ndarray

    @classmethod
    def of_steps(cls, step_of_pixel: np.ndarray) -> Partition:
        """The partition that codes each pixel in its step (from 0), int (H, W)."""
        height, width = step_of_pixel.shape
        steps = step_of_pixel.ravel()
        order = np.argsort(steps, kind="stable")
        bounds = np.concatenate([[0], np.cumsum(np.bincount(steps))])
        return cls(height, width, order, bounds)

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.bounds) - 1

    def due(self, step: int) -> np.ndarray:
        """Flat indices of the pixels that a step codes, int64 (n,)."""
        return self.order[self.bounds[step] : self.bounds[step + 1]]

    @cached_property
    def step_of_pixel(self) -> np.ndarray:
        """Step (from 0) that codes each pixel, int32 (H, W)."""
        steps = np.empty(len(self.order), dtype=np.int32)
        steps[self.order] = np.repeat(np.arange(self.steps, dtype=np.int32), np.diff(self.bounds))
        return steps.reshape(self.height, self.width)

    def strides_of_steps(self, largest: int) -> np.ndarray:
        """Stride of the coarsest lattice that holds all pixels known or due in each step.

        Args:
            largest: stride, a power of two, as all are.

        Returns:
            int64 (steps,), falling from at most `largest`.
        """
        own = coarsest_strides(self.height, self.width, largest).ravel()[self.order]
        return np.minimum.accumulate(np.minimum.reduceat(own, self.bounds[:-1]))

    @cached_property
    def strides(self) -> np.ndarray:
        """Stride of the lattice that each pixel is predicted on, int64 (H, W), powers of two.

        It is the coarsest lattice, up to `LARGEST_STRIDE`, that holds the pixel and all pixels
        known before its step. In the nested order a pixel has about as many known neighbours on it
        at every stride.
        """
        known = np.append(LARGEST_STRIDE, self.strides_of_steps(LARGEST_STRIDE)[:-1])
        own = coarsest_strides(self.height, self.width, LARGEST_STRIDE)
        return np.minimum(own, known[self.step_of_pixel])

    @cached_property
    def context_steps(self) -> np.ndarray:
        """Step before which the context of each pixel is computed, int64 (H, W); -1 for none.

        The context of a pixel predicted at stride s comes from the known pixels of the lattice of
        stride 2·s; without any, or on a lattice of fewer than `SMALLEST_LATTICE` pixels, which the
        window of a pixel covers, there is none. It is computed in the first step that needs it, and
        again when the lattice is complete or has at least twice as many known pixels as at the last
        time: once a stride where steps end with lattices, and at most ⌈log2 n⌉ + 1 times for a
        lattice of n pixels.
        """
        steps, contexts = self.step_of_pixel, np.full((self.height, self.width), -1)
        for stride in np.unique(self.strides):
            lattice = steps[:: 2 * stride, :: 2 * stride].ravel()
            if lattice.size < SMALLEST_LATTICE:
                continue
            # Pixels of the lattice that are known before each step.
            known = np.append(0, np.bincount(lattice, minlength=self.steps).cumsum())
            here = self.strides == stride
            computed, had = -1, 0  # the step of the last time, and how many were known then
            context_of_step = np.full(self.steps, -1)
            for step in np.unique(steps[here]):
                if known[step] > had and (known[step] >= 2 * had or known[step] == lattice.size):
                    computed, had = step, known[step]
                context_of_step[step] = computed
            contexts[here] = context_of_step[steps[here]]
        return contexts


def coarsest_strides(height: int, width: int, largest: int) -> np.ndarray:
    """Stride, up to `largest`, of the coarsest lattice that holds each pixel, int64 (H, W)."""
    y, x = np.mgrid[:height, :width]
    either = y | x | largest
    return either & -either  # the lowest bit set


@dataclass(frozen=True)
class Schedule:
    """Pixel order and step sizes, for images of any size in any number of steps.

    Schedules are equal, and have the same hash, where all of their attributes are equal.

    Attributes:
        order: name of the pixel order, see `pixel_order`.
        sizes: of the steps: `equal`, `power`, `planned`, or relative sizes. Relative sizes hold for
            as many steps, and other numbers of steps are `equal`; `planned` takes the sizes of
            `plans`, and `power` for numbers of steps without a plan.
        exponent: growth of `power` sizes.
        plans: relative sizes of the steps, by the number of steps.
    """

    order: str = "nested"
    sizes: str | Sequence[float] = "power"
    exponent: float = 1.0
    plans: Mapping[int, Sequence[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Copies: a list or a mapping that was given may change later.
        if isinstance(self.sizes, Sequence) and not isinstance(self.sizes, str):
            object.__setattr__(self, "sizes", tuple(self.sizes))
        plans = {steps: tuple(sizes) for steps, sizes in self.plans.items()}
        object.__setattr__(self, "plans", plans)

    def __hash__(self) -> int:
        """Of all attributes."""
        return hash((self.order, self.sizes, self.exponent, frozenset(self.plans.items())))

    def bounds(self, pixels: int, steps: int) -> np.ndarray:
        """Where the steps begin and end in the order, int64 (steps + 1,), see `step_bounds`.

        Raises:
            SettingError: fewer than 1 or more than `pixels` steps, or sizes that don't fit.
        """
        sizes = self.sizes
        if sizes == "planned":
            sizes = self.plans.get(steps, "power")
        elif isinstance(sizes, tuple) and len(sizes) != steps:
            sizes = "equal"
        return step_bounds(pixels, steps, sizes, self.exponent)

    def partition(self, height: int, width: int, steps: int) -> Partition:
        """The steps of an image of this size; those asked for last are remembered.

        Raises:
            SettingError: as `bounds`, or an unknown order.
        """
        key = height, width, steps
        partition = self._kept.get(key)
        if partition is None:
            partition = self.cut(height, width, self.bounds(height * width, steps))
            if height * width <= KEPT_PIXELS:
                if len(self._kept) >= KEPT:
                    self._kept.clear()
                self._kept[key] = partition
        return partition

    def cut(self, height: int, width: int, bounds: np.ndarray) -> Partition:
        """The pixel order cut at places of one's own, as `Partition.bounds`, whatever the sizes.

        Raises:
            SettingError: an unknown order.
        """
        return Partition(height, width, pixel_order(self.order, height, width), bounds)

    @cached_property
    def _kept(self) -> dict[tuple[int, int, int], Partition]:
        return {}


def step_bounds(
    pixels: int, steps: int, sizes: str | Sequence[float] = "equal", exponent: float = 1.0
) -> np.ndarray:
    """Where the steps of a partition end: step j codes order[bounds[j]:bounds[j + 1]].

    Args:
        pixels: number of pixels of the image.
        steps: number of steps, 1 to `pixels`.
        sizes: `equal`, `power` (step j of K ends at pixels·(j/K)^(1 + exponent), so that its size
            grows like j^exponent; M2T, Mentzer et al. 2023, grows with 2.2), or a sequence of
            `steps` relative sizes.
        exponent: growth of `power`; 0 is `equal`.

    Returns:
        int64 (steps + 1,), strictly increasing from 0 to `pixels`.

    Raises:
        SettingError: fewer than 1 or more than `pixels` steps, or sizes that don't fit.
    """
    if not 1 <= steps <= pixels:
        raise SettingError(f"steps must be from 1 to the number of pixels, {pixels}; got {steps}")
    if isinstance(sizes, str):
        if sizes not in SIZES:
            raise SettingError(f"unknown step sizes '{sizes}': expected one of {', '.join(SIZES)}")
        power = exponent if sizes == "power" else 0.0
        if not power >= 0:
            raise SettingError(f"the exponent of the step sizes must not be negative; got {power}")
        fractions = (np.arange(steps + 1) / steps) ** (1 + power)
    else:
        relative = np.asarray(sizes, dtype=np.float64)
        if relative.shape != (steps,) or not ((relative > 0) & (relative < np.inf)).all():
            raise SettingError(
                f"the step sizes must be {steps} numbers above 0, one for each step; got {sizes}"
            )
        fractions = np.concatenate([[0.0], np.cumsum(relative) / np.cumsum(relative)[-1]])
    bounds = _whole(fractions, pixels)
    if isinstance(sizes, str):
        # Libraries differ in the last bits of a power: where these count, take enough digits.
        less, more = fractions * (1 - 2**-50), fractions * (1 + 2**-50)
        for place in np.flatnonzero(_whole(less, pixels) != _whole(more, pixels)):
            fraction = Context(prec=50).power(Decimal(int(place) / steps), Decimal(1 + power))
            bounds[place] = _whole(np.array(float(fraction)), pixels)
    # At least one pixel a step: push up from the left, then down from the right.
    first = np.arange(steps + 1)
    bounds = np.maximum.accumulate(bounds - first) + first
    return np.minimum(bounds, pixels - first[::-1])


def _whole(fractions: np.ndarray, pixels: int) -> np.ndarray:
    """Fractions of the pixels in whole ones."""
    # The first rounding takes away what libraries' powers differ by where they should give halves.
    return np.rint(np.rint(fractions * pixels * 2**20) / 2**20).astype(np.int64)

"""The step schedule: which pixels of an image are coded in which step.

A `Schedule` holds the pixel order and the rule for step sizes. It applies to images of any size and
any number of steps. From it follows a `Partition`: the steps of images of one size. The pixels
known before a step are a prefix of the order. The pixels due in a step are those that it codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Context, Decimal
from functools import cached_property

import numpy as np

from italic.errors import LARGEST, SettingError, check_range
from italic.orders import pixel_order

SIZES = ("equal", "power")
LARGEST_STRIDE = 64  # largest stride of a lattice on which pixels are predicted
SMALLEST_LATTICE = 16  # fewest pixels of a lattice from which contexts are computed
CACHED = 4  # partitions in the cache of a schedule
CACHED_PIXELS = 2**20  # pixels of the largest image whose partition is cached


@dataclass(frozen=True, eq=False)
class Partition:
    """The pixels of an H×W image in coding order, divided into steps.

    The lattice of stride s is a sub-sampled grid: the pixels whose row and column are multiples of
    s. Strides are powers of two.

    Attributes:
        height: H.
        width: W.
        order: int64 (H·W,), flat pixel indices in coding order.
        bounds: int64 (steps + 1,), strictly increasing from 0 to H·W: step j codes
            order[bounds[j]:bounds[j + 1]].
    """

    height: int
    width: int
    order: np.ndarray
    bounds: np.ndarray

    @classmethod
    def of_steps(cls, step_of_pixel: np.ndarray) -> Partition:
        """The partition that codes each pixel in the given step (from 0), int (H, W)."""
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
        """Flat indices of the pixels due in a step, int64 (n,)."""
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
            largest: upper bound of the strides, a power of two.

        Returns:
            int64 (steps,), at most `largest`, not increasing.
        """
        strides = coarsest_strides(self.height, self.width, largest).ravel()[self.order]
        return np.minimum.accumulate(np.minimum.reduceat(strides, self.bounds[:-1]))

    @cached_property
    def strides(self) -> np.ndarray:
        """Stride of the lattice on which each pixel is predicted, int64 (H, W).

        It is the coarsest lattice, up to `LARGEST_STRIDE`, that holds the pixel and all pixels
        known before its step. In the nested order, the number of known neighbours on this lattice
        is about the same for every stride.
        """
        known = np.append(LARGEST_STRIDE, self.strides_of_steps(LARGEST_STRIDE)[:-1])
        strides = coarsest_strides(self.height, self.width, LARGEST_STRIDE)
        return np.minimum(strides, known[self.step_of_pixel])

    @cached_property
    def context_steps(self) -> np.ndarray:
        """Step before which the context of each pixel is computed, int64 (H, W); -1 for no context.

        The context of a pixel predicted at stride s is computed from the known pixels of the
        lattice of stride 2·s. There is no context if no pixel of that lattice is known, or if the
        lattice has fewer than `SMALLEST_LATTICE` pixels, because the window of a pixel covers it.

        The context is computed in the first step that needs it. It is computed again when the
        lattice is complete, or when the number of its known pixels has at least doubled since the
        last time. That is once per stride if steps end where lattices are complete, and at most
        ⌈log2 n⌉ + 1 times for a lattice of n pixels.
        """
        steps, contexts = self.step_of_pixel, np.full((self.height, self.width), -1)
        for stride in np.unique(self.strides):
            lattice = steps[:: 2 * stride, :: 2 * stride].ravel()
            if lattice.size < SMALLEST_LATTICE:
                continue
            # Number of the lattice's pixels that are known before each step.
            known = np.append(0, np.bincount(lattice, minlength=self.steps).cumsum())
            selected = self.strides == stride
            last, last_known = -1, 0  # step of the last computation, and pixels known then
            context_of_step = np.full(self.steps, -1)
            for step in np.unique(steps[selected]):
                doubled = known[step] >= 2 * last_known
                if known[step] > last_known and (doubled or known[step] == lattice.size):
                    last, last_known = step, known[step]
                context_of_step[step] = last
            contexts[selected] = context_of_step[steps[selected]]
        return contexts


def coarsest_strides(height: int, width: int, largest: int) -> np.ndarray:
    """Stride, up to `largest`, of the coarsest lattice that holds each pixel, int64 (H, W)."""
    y, x = np.mgrid[:height, :width]
    either = y | x | largest
    return either & -either  # the lowest bit set


@dataclass(frozen=True)
class Schedule:
    """Pixel order and rule for step sizes, for images of any size and any number of steps.

    Two schedules are equal, and have the same hash, if all of their attributes are equal.

    Args:
        order: name of the pixel order: nested, normal, raster, quad, uneven_1, uneven_2, or
            MODULE.NAME of a user-defined function, see `pixel_order`.
        sizes: sizes of the steps: `equal`, `power`, `planned`, or a sequence of relative sizes, one
            for each step. Partitions into another number of steps are then `equal`. `planned` sizes
            minimise the bits; the export of a trained model computes them. Numbers of steps that
            are not planned use `power`.
        exponent: growth exponent of `power` sizes, not negative.
        plans: relative sizes of the steps, by the number of steps.

    Raises:
        SettingError: invalid sizes, or an exponent that is negative or not finite, even if the
            sizes do not use it.
    """

    order: str = "nested"
    sizes: str | Sequence[float] = "power"
    exponent: float = 1.0
    plans: Mapping[int, Sequence[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_sizes(self.sizes, (*SIZES, "planned"))
        check_exponent(self.exponent)
        # The caller may change its list or mapping later.
        if isinstance(self.sizes, Sequence) and not isinstance(self.sizes, str):
            object.__setattr__(self, "sizes", tuple(self.sizes))
        plans = {steps: tuple(sizes) for steps, sizes in self.plans.items()}
        object.__setattr__(self, "plans", plans)

    def __hash__(self) -> int:
        """A hash of all attributes."""
        return hash((self.order, self.sizes, self.exponent, frozenset(self.plans.items())))

    def bounds(self, pixels: int, steps: int) -> np.ndarray:
        """Bounds of the steps in the order, int64 (steps + 1,), see `step_bounds`.

        Raises:
            SettingError: fewer than 1 or more than `pixels` steps, or invalid sizes.
        """
        sizes = self.sizes
        if sizes == "planned":
            sizes = self.plans.get(steps, "power")
        elif isinstance(sizes, tuple) and len(sizes) != steps:
            sizes = "equal"
        return step_bounds(pixels, steps, sizes, self.exponent)

    def partition(self, height: int, width: int, steps: int) -> Partition:
        """The partition of an image of this size; recent partitions are cached.

        Raises:
            SettingError: as `bounds`, or the order is unknown.
        """
        key = height, width, steps
        partition = self._cache.get(key)
        if partition is None:
            partition = self.cut(height, width, self.bounds(height * width, steps))
            if height * width <= CACHED_PIXELS:
                if len(self._cache) >= CACHED:
                    self._cache.clear()
                self._cache[key] = partition
        return partition

    def cut(self, height: int, width: int, bounds: np.ndarray) -> Partition:
        """The pixel order divided at the given bounds, see `Partition.bounds`; ignores `sizes`.

        Raises:
            SettingError: the order is unknown.
        """
        return Partition(height, width, pixel_order(self.order, height, width), bounds)

    @cached_property
    def _cache(self) -> dict[tuple[int, int, int], Partition]:
        return {}


def steps_text(number: int | str) -> str:
    """A number of steps with its unit: "1 step" or "16 steps"."""
    return f"{number} {'step' if str(number) == '1' else 'steps'}"


def check_sizes(sizes: object, names: Sequence[str]) -> None:
    """Check that step sizes are one of the names, or a sequence of numbers above 0.

    Raises:
        SettingError: they are not.
    """
    if isinstance(sizes, str):
        valid = sizes in names
    else:
        valid = isinstance(sizes, Sequence) and all(
            isinstance(size, int | float) and not isinstance(size, bool) and 0 < size <= LARGEST
            for size in sizes
        )
    if not valid or not sizes:
        raise SettingError(
            f"invalid step sizes {sizes}: expected {', '.join(names)}, or a list of numbers above "
            "0, one for each step"
        )


def check_exponent(exponent: float) -> None:
    """Check the growth exponent of `power` sizes.

    Raises:
        SettingError: it is negative or not finite.
    """
    check_range("the exponent of the step sizes", exponent, 0)


def step_bounds(
    pixels: int, steps: int, sizes: str | Sequence[float] = "equal", exponent: float = 1.0
) -> np.ndarray:
    """Bounds of the steps of a partition: step j codes order[bounds[j]:bounds[j + 1]].

    Args:
        pixels: number of pixels of the image.
        steps: number of steps, 1 to `pixels`.
        sizes: `equal`, `power`, or a sequence of `steps` relative sizes. With `power`, step j of K
            (from 1) ends at pixels·(j/K)^(1 + exponent), so its size grows like j^exponent. M2T
            (Mentzer et al. 2023) uses the exponent 2.2.
        exponent: growth exponent of `power`, not negative; 0 gives `equal`.

    Returns:
        int64 (steps + 1,), strictly increasing from 0 to `pixels`.

    Raises:
        SettingError: fewer than 1 or more than `pixels` steps, or invalid sizes.
    """
    if not 1 <= steps <= pixels:
        raise SettingError(f"steps must be from 1 to the number of pixels, {pixels}; got {steps}")
    check_sizes(sizes, SIZES)
    check_exponent(exponent)
    if isinstance(sizes, str):
        power = exponent if sizes == "power" else 0.0
        fractions = (np.arange(steps + 1) / steps) ** (1 + power)
    else:
        if len(sizes) != steps:
            raise SettingError(
                f"the step sizes must be {steps} numbers above 0, one for each step; got {sizes}"
            )
        relative = np.asarray(sizes, dtype=np.float64)
        fractions = np.concatenate([[0.0], np.cumsum(relative) / np.cumsum(relative)[-1]])
    bounds = _whole(fractions, pixels)
    if isinstance(sizes, str):
        # Libraries differ in the last bits of a power. Where these bits change a bound, it is
        # computed with 50 decimal digits.
        less, more = fractions * (1 - 2**-50), fractions * (1 + 2**-50)
        for place in np.flatnonzero(_whole(less, pixels) != _whole(more, pixels)):
            fraction = Context(prec=50).power(Decimal(int(place) / steps), Decimal(1 + power))
            bounds[place] = _whole(np.array(float(fraction)), pixels)
    # Each step gets at least one pixel: raise bounds from the left, then lower from the right.
    first = np.arange(steps + 1)
    bounds = np.maximum.accumulate(bounds - first) + first
    return np.minimum(bounds, pixels - first[::-1])


def _whole(fractions: np.ndarray, pixels: int) -> np.ndarray:
    """Fractions of the pixels, rounded to whole pixels."""
    # The first rounding removes differences between libraries where the exact value is a half.
    return np.rint(np.rint(fractions * pixels * 2**20) / 2**20).astype(np.int64)

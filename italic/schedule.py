"""The step schedule: which pixels of an image are coded in which step.

A `Schedule` holds the pixel order and the rule for step sizes, for images of any size in any number
of steps. A `Partition` is what it gives for one size and one number of steps; training also draws
random ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np

from italic.masks import pixel_order, step_bounds

LARGEST_STRIDE = 64  # of the lattices that pixels are predicted on


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
        """Stride, up to `largest`, of the coarsest lattice of all pixels known or due in each step.

        Returns:
            int64 (steps,).
        """
        own = np.minimum(own_strides(self.height, self.width).ravel(), largest)
        return np.minimum.accumulate(own[self.order])[self.bounds[1:] - 1]

    @cached_property
    def strides(self) -> np.ndarray:
        """Stride of the lattice that each pixel is predicted on, int64 (H, W), powers of two.

        It is the coarsest lattice that holds the pixel and all pixels known before its step. In the
        nested order a pixel has about as many known neighbours on it at every stride.
        """
        own = own_strides(self.height, self.width).ravel()
        known = np.minimum.accumulate(np.concatenate([[LARGEST_STRIDE], own[self.order]]))
        return np.minimum(own, known[self.bounds][self.step_of_pixel.ravel()]).reshape(
            self.height, self.width
        )

    @cached_property
    def context_steps(self) -> np.ndarray:
        """Step before which the context of each pixel is computed, int64 (H, W); -1 for none.

        The context of a pixel predicted at stride s comes from the known pixels of the lattice of
        stride 2·s. It is computed in the first step that needs it, and again when the lattice is
        complete, or has twice as many known pixels as at the last time. So it is computed once a
        stride where steps end with lattices, and log2(H·W) times at most where they never do.
        """
        steps, contexts = self.step_of_pixel, np.full((self.height, self.width), -1)
        for stride in np.unique(self.strides):
            lattice = steps[:: 2 * stride, :: 2 * stride].ravel()
            known = np.concatenate([[0], np.cumsum(np.bincount(lattice, minlength=self.steps))])
            here = self.strides == stride
            renewed, context_of_step = -1, np.full(self.steps, -1)
            for step in np.unique(steps[here]):
                had = known[renewed] if renewed >= 0 else 0
                if known[step] > had and (known[step] >= 2 * had or known[step] == lattice.size):
                    renewed = step
                context_of_step[step] = renewed
            contexts[here] = context_of_step[steps[here]]
        return contexts


def own_strides(height: int, width: int) -> np.ndarray:
    """Largest stride, up to `LARGEST_STRIDE`, of the lattices that hold each pixel, (H, W)."""
    y, x = np.mgrid[:height, :width]
    either = y | x | LARGEST_STRIDE
    return either & -either


@dataclass(frozen=True)
class Schedule:
    """Pixel order and step sizes, for images of any size in any number of steps.

    Attributes:
        order: name of the pixel order, see `pixel_order`.
        sizes: of the steps: `equal`, `power`, `planned` or relative sizes. Relative sizes hold for
            as many steps, other numbers of steps are `equal`; `planned` takes the sizes of `plans`,
            and `power` for numbers of steps without a plan.
        exponent: growth of `power` sizes.
        plans: relative sizes of the steps, by the number of steps.
    """

    order: str = "nested"
    sizes: str | tuple[float, ...] = "power"
    exponent: float = 1.0
    plans: Mapping[int, Sequence[float]] = field(default_factory=dict, hash=False)

    def bounds(self, pixels: int, steps: int) -> np.ndarray:
        """Where the steps begin and end in the order, int64 (steps + 1,).

        Raises:
            ValueError: fewer than 1 or more than `pixels` steps, or sizes that don't fit.
        """
        sizes: str | Sequence[float] = self.sizes
        if sizes == "planned":
            sizes = self.plans.get(steps, "power")
        elif not isinstance(sizes, str) and len(sizes) != steps:
            sizes = "equal"
        return step_bounds(pixels, steps, sizes, self.exponent)

    @lru_cache(maxsize=8)  # noqa: B019
    def partition(self, height: int, width: int, steps: int) -> Partition:
        """The steps of an image of this size.

        Raises:
            ValueError: as `bounds`, or an unknown order.
        """
        order = cached_order(self.order, height, width)
        return Partition(height, width, order, self.bounds(height * width, steps))


@lru_cache(maxsize=8)
def cached_order(name: str, height: int, width: int) -> np.ndarray:
    """`pixel_order`, read-only: computed once for images of one size."""
    order = pixel_order(name, height, width)
    order.setflags(write=False)
    return order

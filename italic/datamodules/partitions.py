"""Random partitions of training: the step of each pixel in a training batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from italic.coding.files.container import MAX_STEPS
from italic.errors import SettingError, check_range
from italic.schedule import SMALLEST_LATTICE, Schedule, steps_text

MOST_GROWTH = 2.5  # largest growth exponent of the step sizes
MANY_STEPS = 8  # least number of steps of a random partition that completes lattices in turn


@dataclass(frozen=True)
class TrainingPartitions:
    """Which partitions training draws, and the partition of validation.

    Args:
        schedule: pixel order and step sizes. If it has plans, training draws from the planned
            partitions instead of random ones; plans then give the pixels per step for each number
            of steps from 1 to the largest.
        steps: number of steps of the validation partition, and of the training partition with
            `unroll` 0.
        unroll: number of consecutive steps of a random partition in a training sample; 0 for all
            steps of the fixed partition into `steps`, as in the original ITALIC.
        min_steps: smallest number of steps of a random partition; 1 for base codes except the
            first.
        max_steps: largest number of steps of a random partition for the first base code.
        few_steps: largest number of steps of a random partition for the other base codes of a
            ladder.
        whole_partitions: whether a training batch has all steps of one random (or planned)
            partition, the same for all of its images, instead of `unroll` steps.

    Raises:
        SettingError: a number of steps is out of range.
    """

    schedule: Schedule
    steps: int
    unroll: int = 1
    min_steps: int = 1
    max_steps: int = 64
    few_steps: int = 4
    whole_partitions: bool = False

    def __post_init__(self) -> None:
        check_range("steps", self.steps, 1, MAX_STEPS)
        check_range("masks.unroll", self.unroll, 0)
        check_range("masks.few_steps", self.few_steps, 1, MAX_STEPS)
        check_range("masks.max_steps", self.max_steps, 1, MAX_STEPS)
        if not 1 <= self.min_steps <= self.max_steps:
            raise SettingError(
                "expected 1 ≤ masks.min_steps ≤ masks.max_steps; "
                f"got {self.min_steps} and {self.max_steps}"
            )
        plans = self.schedule.plans
        if plans and self.min_steps > len(plans):
            raise SettingError(
                f"the model has plans for at most {steps_text(len(plans))}: expected "
                f"masks.min_steps of at most that, or masks.plans=null; got {self.min_steps}"
            )


class PartitionSampler:
    """Draws the step of each pixel for batches of images of one size.

    Args:
        partitions: the partitions to draw from.
        height: height H of the images.
        width: width W of the images.

    Attributes:
        fixed: int64 (H, W), step of each pixel in the partition of validation.

    Raises:
        SettingError: there are more steps than pixels, the order or the sizes are unknown, the
            plans belong to images of another size, or the images are too small.
    """

    def __init__(self, partitions: TrainingPartitions, height: int, width: int) -> None:
        self.partitions = partitions
        schedule = partitions.schedule
        # The context network must be trained, see `Partition.context_steps`.
        if partitions.whole_partitions and -(-height // 2) * -(-width // 2) < SMALLEST_LATTICE:
            raise SettingError(
                f"images of {height}×{width} pixels are too small for model=lattice: expected 7×7 "
                "or more, or model=rnan"
            )
        self.plans = plan_bounds(height * width, schedule.plans) if schedule.plans else None
        partition = schedule.partition(height, width, partitions.steps)
        self.fixed = torch.from_numpy(partition.step_of_pixel).long()
        self.rank = torch.from_numpy(np.argsort(partition.order).reshape(height, width))

    def whole(self, rung: Tensor) -> Tensor:
        """The partition of validation for each image, int64 (B, H, W).

        Args:
            rung: int64 (B,), index of the base code of each image; the result is on its device.
        """
        return self.fixed.to(rung.device).expand(len(rung), -1, -1)

    def random(self, rung: Tensor) -> Tensor:
        """Step of each pixel in the windows or partitions of a training batch, int64 (B, H, W).

        Args:
            rung: as `whole`; with whole partitions, the same for all images.
        """
        partitions = self.partitions
        if not partitions.whole_partitions and partitions.unroll == 0:
            return self.whole(rung)
        self.rank = self.rank.to(rung.device)  # stays on the device for the next batch
        if self.plans is not None:
            self.plans = self.plans.to(rung.device)
        if partitions.whole_partitions:
            return self._partition(rung[:1]).expand(len(rung), -1, -1)
        least, largest = self._limits(rung)
        if self.plans is None:
            return random_windows(self.rank, partitions.unroll, least, largest)
        return planned_windows(self.rank, partitions.unroll, least, largest, self.plans)

    def _limits(self, rung: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest and the largest number of steps for each rung, float64 (B,)."""
        partitions = self.partitions
        least = torch.where(rung > 0, 1.0, float(partitions.min_steps))
        largest = torch.where(rung > 0, float(partitions.few_steps), float(partitions.max_steps))
        return least.double(), largest.double()

    def _partition(self, rung: Tensor) -> Tensor:
        """Step of each pixel in a random or planned partition for a rung, (1,); int64 (H, W)."""
        least, largest = self._limits(rung.cpu())
        if self.plans is None:
            nested = self.partitions.schedule.order == "nested"
            height, width = self.rank.shape
            bounds = random_bounds(height, width, least, largest, ends=nested)
        else:
            bounds = random_plan(least, largest, self.plans)
        return torch.bucketize(self.rank, bounds[1:].to(self.rank.device), right=True)


def plan_bounds(pixels: int, plans: Mapping[int, Sequence[float]]) -> Tensor:
    """Bounds of planned partitions, the argument `plans` of `planned_windows`.

    Args:
        pixels: number of pixels of an image.
        plans: pixels per step, for each number of steps from 1 to M.

    Returns:
        int64 (M + 1, M + 1).

    Raises:
        SettingError: the plans belong to images of another size.
    """
    bounds = torch.full((len(plans) + 1, len(plans) + 1), pixels)
    for steps, sizes in plans.items():
        if sum(sizes) != pixels:
            raise SettingError(
                f"the model's steps are planned for images of {sum(sizes)} pixels, but these have "
                f"{pixels}: expected images of the planned size, or masks.plans=null"
            )
        bounds[steps, : steps + 1] = torch.tensor([0, *sizes]).cumsum(0)
    return bounds


def random_windows(rank: Tensor, steps: int, min_steps: Tensor, max_steps: Tensor) -> Tensor:
    """Random windows of consecutive steps of random partitions, one window per image.

    Each image draws a number of steps K, log-uniform from `min_steps` to `max_steps`; a growth
    exponent of the step sizes, uniform from 0 to `MOST_GROWTH`; and a step, with probability
    proportional to its number of pixels. The window consists of this step and the `steps − 1` steps
    before it. So the expected bits per sub-pixel of a window of one step equal the bpsp of coding;
    in longer windows, early steps weigh more.

    Args:
        rank: int64 (H, W), the position of each pixel in the order.
        steps: number of steps in a window.
        min_steps: float64 (B,), the smallest K of each image.
        max_steps: float64 (B,), the largest K of each image.

    Returns:
        int64 (B, H, W), see `italic.datamodules.step_masks.Batch.step_of_pixel`.
    """
    pixels = rank.numel()
    number = _random_numbers(min_steps, max_steps)
    growth = 1 + MOST_GROWTH * torch.rand_like(number)
    last = torch.floor(torch.rand_like(number) ** (1 / growth) * number)
    first = (last - steps + 1).clamp(min=0)
    window = torch.arange(steps + 1, device=rank.device)
    edges = torch.minimum(first[:, None] + window, last[:, None] + 1)
    bounds = torch.round(pixels * (edges / number[:, None]) ** growth[:, None])
    # After rounding, the drawn step must still have a pixel.
    bounds[:, 0] = bounds[:, 0].clamp(max=pixels - 1)
    bounds = torch.maximum(bounds, bounds[:, :1] + (edges > first[:, None]))
    return (rank >= bounds[:, :, None, None]).sum(1) - 1


def random_bounds(
    height: int, width: int, min_steps: Tensor, max_steps: Tensor, ends: bool
) -> Tensor:
    """Bounds of a random partition, drawn like the partitions of `random_windows`.

    Args:
        height: height of the images.
        width: width of the images.
        min_steps: float64 (1,), the smallest number of steps.
        max_steps: float64 (1,), the largest number of steps.
        ends: whether partitions of `MANY_STEPS` or more steps get additional bounds where the
            lattices of strides 2, 4 and 8 are complete. Planned partitions have such bounds too,
            because the context of a lattice that is incomplete is computed again later.

    Returns:
        int64 (steps + 1,).
    """
    number = _random_numbers(min_steps, max_steps)
    growth = 1 + MOST_GROWTH * torch.rand_like(number)
    fractions = torch.arange(int(number) + 1) / number
    bounds = torch.round(height * width * fractions**growth).long()
    if ends and number >= MANY_STEPS:
        lattices = [-(-height // stride) * -(-width // stride) for stride in (2, 4, 8)]
        bounds = torch.cat([bounds, torch.tensor(lattices)])
    return bounds.unique()


def random_plan(min_steps: Tensor, max_steps: Tensor, plans: Tensor) -> Tensor:
    """Bounds of a random planned partition, drawn like the partitions of `planned_windows`.

    Args:
        min_steps: float64 (1,), the smallest number of steps.
        max_steps: float64 (1,), the largest number of steps.
        plans: int64 (M + 1, M + 1), see `planned_windows`.

    Returns:
        int64 (steps + 1,).
    """
    number = int(_random_numbers(min_steps, max_steps.clamp(max=len(plans) - 1)))
    return plans[number, : number + 1]


def planned_windows(
    rank: Tensor, steps: int, min_steps: Tensor, max_steps: Tensor, plans: Tensor
) -> Tensor:
    """Random windows of consecutive steps of planned partitions, drawn like `random_windows`.

    Args:
        rank: int64 (H, W), the position of each pixel in the order.
        steps: number of steps in a window.
        min_steps: float64 (B,), the smallest number of steps of each image.
        max_steps: float64 (B,), the largest number of steps of each image.
        plans: int64 (M + 1, M + 1). Row K, up to M, holds the bounds of the partition into K steps,
            from 0 to H·W, and is padded with H·W.

    Returns:
        int64 (B, H, W), see `italic.datamodules.step_masks.Batch.step_of_pixel`.
    """
    bounds = plans[_random_numbers(min_steps, max_steps.clamp(max=len(plans) - 1)).long()]
    drawn = torch.randint(rank.numel(), (len(bounds), 1), device=rank.device)
    last = (bounds <= drawn).sum(1, keepdim=True) - 1
    first = (last - steps + 1).clamp(min=0)
    edges = torch.minimum(first + torch.arange(steps + 1, device=rank.device), last + 1)
    return (rank >= bounds.gather(1, edges)[:, :, None, None]).sum(1) - 1


def _random_numbers(smallest: Tensor, largest: Tensor) -> Tensor:
    """Log-uniform integers from `smallest` to `largest`, float64 (B,)."""
    spread = torch.log((largest + 1) / smallest)
    numbers = torch.floor(smallest * torch.exp(spread * torch.rand_like(spread)))
    return torch.minimum(numbers, largest)  # rounding errors could exceed it

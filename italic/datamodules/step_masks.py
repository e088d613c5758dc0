"""The LightningDataModule: images with base codes and random step masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from italic.coding.base_codes.base import BaseCode, NoBase
from italic.datamodules.crops import RandomCrops, mirror_at_random
from italic.datamodules.images import ImageSource, Split, crops_of
from italic.datamodules.pairs import Pairs, make_pairs
from italic.errors import SettingError, check_at_least
from italic.schedule import Schedule

MANY_STEPS = 8  # least number of steps of a random partition that completes lattices in turn
FEW_STEPS = 4  # largest number of steps in training for all rungs of a ladder except the first


class Batch(NamedTuple):
    """Images with the step that codes each pixel.

    Attributes:
        image: uint8 (B, 3, H, W).
        base: uint8 (B, 3, H, W), the base codes' reconstructions.
        base_bits: int64 (B,), bits of the base codes.
        rung: int64 (B,), index of the base code in the list of base codes.
        step_of_pixel: int64 (B, H, W), the step that codes each pixel, relative to the first step
            of the batch. Pixels below 0 are known before the first step, and pixels above the last
            step of the batch are coded later.
    """

    image: Tensor
    base: Tensor
    base_bits: Tensor
    rung: Tensor
    step_of_pixel: Tensor


Rows = tuple[Tensor, Tensor, Tensor, Tensor]  # the fields of a `Batch` except `step_of_pixel`


def plan_bounds(pixels: int, plans: Mapping[int, Sequence[float]]) -> Tensor:
    """Bounds of planned partitions, the argument `plans` of `planned_windows`.

    Args:
        pixels: number of pixels of an image.
        plans: pixels per step, for each number of steps from 1 to M.

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


class PairDataset(Dataset[int]):
    """A data set of pairs that reads whole batches from the memory-mapped cache.

    Args:
        rungs: pairs of the same images with each base code.
        every: whether each image draws a random base code; otherwise it has the first one.
        alike: whether all images of a batch have the same base code.
    """

    def __init__(self, rungs: Sequence[Pairs], every: bool, alike: bool = False) -> None:
        self.rungs, self.every, self.alike = rungs, every, alike

    def __len__(self) -> int:
        """Number of images."""
        return len(self.rungs[0])

    def __getitems__(self, indices: Sequence[int]) -> Rows:
        """Images, bases (uint8 (B, 3, H, W)), base bits and base code indices (B,)."""
        rows = np.asarray(indices)
        rung = random_rungs(len(rows), len(self.rungs) if self.every else 1, alike=self.alike)
        bases = np.stack([self.rungs[r].bases[i] for r, i in zip(rung, rows, strict=True)])
        base_bits = [int(self.rungs[r].base_bits[i]) for r, i in zip(rung, rows, strict=True)]
        image, base = (
            torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))
            for array in (self.rungs[0].images[rows], bases)
        )
        return image, base, torch.tensor(base_bits), rung


class EachOnce(DistributedSampler[int]):
    """A sampler that distributes the indices over all processes, each index exactly once.

    PyTorch's sampler repeats some indices to give all processes the same number.

    Raises:
        SettingError: there are fewer indices than processes.
    """

    def __init__(self, images: Dataset[int], processes: int, rank: int) -> None:
        super().__init__(images, processes, rank, shuffle=False)
        self.indices = range(rank, len(images), processes)  # type: ignore[arg-type]
        if not self.indices:
            raise SettingError(
                f"{len(images)} validation images for {processes} processes: "  # type: ignore[arg-type]
                "expected at least one image per process, so more images or fewer trainer.devices"
            )

    def __iter__(self) -> Iterator[int]:
        """The indices of this process."""
        return iter(self.indices)

    def __len__(self) -> int:
        """Number of indices of this process."""
        return len(self.indices)


def random_rungs(
    images: int, rungs: int, device: torch.device | None = None, alike: bool = False
) -> Tensor:
    """Random base code indices, int64 (B,): 0 with probability 1/2, else uniform over the others.

    Args:
        images: B.
        rungs: number of base codes.
        device: device of the result.
        alike: whether all images have the same index.
    """
    if alike:
        return random_rungs(1, rungs, device).expand(images)
    first = torch.zeros(images, dtype=torch.int64, device=device)
    if rungs == 1:
        return first
    other = torch.randint(1, rungs, (images,), device=device)
    return torch.where(torch.rand(images, device=device) < 0.5, first, other)


def random_windows(rank: Tensor, steps: int, min_steps: Tensor, max_steps: Tensor) -> Tensor:
    """Random windows of consecutive steps of random partitions, one window per image.

    Each image draws a number of steps K, log-uniform from `min_steps` to `max_steps`; a growth
    exponent of the step sizes, uniform from 0 to 2.5; and a step, with probability proportional to
    its number of pixels. The window consists of this step and the `steps − 1` steps before it. So
    the expected bits per sub-pixel of a window equal the bpsp of coding.

    Args:
        rank: int64 (H, W), the position of each pixel in the order.
        steps: number of steps in a window.
        min_steps: float64 (B,), the smallest K of each image.
        max_steps: float64 (B,), the largest K of each image.

    Returns:
        int64 (B, H, W): `Batch.step_of_pixel`.
    """
    pixels = rank.numel()
    number = _random_numbers(min_steps, max_steps)
    growth = 1 + 2.5 * torch.rand_like(number)
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
    growth = 1 + 2.5 * torch.rand_like(number)
    fractions = torch.arange(int(number) + 1) / number
    bounds = torch.round(height * width * fractions**growth).long()
    if ends and number >= MANY_STEPS:
        lattices = [-(-height // stride) * -(-width // stride) for stride in (2, 4, 8)]
        bounds = torch.cat([bounds, torch.tensor(lattices)])
    return bounds.unique()


def random_plan(min_steps: Tensor, max_steps: Tensor, plans: Tensor) -> Tensor:
    """Bounds of a random planned partition, see `planned_windows`, int64 (steps + 1,)."""
    largest = torch.tensor(len(plans) - 1.0, dtype=torch.float64)
    number = int(_random_numbers(min_steps, max_steps.clamp(max=largest)))
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
        int64 (B, H, W): `Batch.step_of_pixel`.
    """
    largest = torch.tensor(len(plans) - 1.0, device=rank.device)
    bounds = plans[_random_numbers(min_steps, max_steps.clamp(max=largest)).long()]
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


class StepMasks(pl.LightningDataModule):
    """Images paired with base reconstructions and step masks.

    Args:
        images: source of the images.
        bases: one or several base codes; training draws from them, validation uses the first one.
        cache_dir: folder of the cache of base codes.
        schedule: pixel order and step sizes. If it has plans, training draws from the planned
            partitions instead of random ones; plans then give the pixels per step for each number
            of steps from 1 to the largest.
        ray: address of a Ray cluster whose workers compute the base codes, see `make_pairs`.
        steps: number of steps of the validation partition, and of the training partition with
            `unroll` 0.
        unroll: number of consecutive steps of a random partition in a training sample; 0 for all
            steps of the fixed partition into `steps`, as in the original ITALIC.
        min_steps: smallest number of steps of a random partition; 1 for base codes except the
            first.
        max_steps: largest number of steps of a random partition; `FEW_STEPS` for base codes except
            the first.
        batch_size: number of images in a training batch.
        eval_batch_size: number of images in a validation or test batch.
        train_limit: number of training images, the first ones of the split (full images, if random
            crops are used); 0 for all.
        eval_limit: number of validation and of test images, the first ones of the split; 0 for all.
        by_heart: whether validation uses the training images, as a test of overfitting; excludes
            random crops.
        flip: whether training images and bases are mirrored left-right at random.
        transpose: whether `flip` uses all eight symmetries of the square; None for true with random
            crops and false with tiles.
        workers: number of data loader processes; 0 to load in the training process.
        resident: whether all training pairs are kept in the memory of the training device, where
            the masks are drawn too; for GPUs that would wait for the data loader.
        whole_partitions: whether a training batch has all steps of one random (or planned)
            partition, the same for all of its images, instead of `unroll` steps.

    Raises:
        SettingError: a number of steps, a limit or a batch size is out of range; or random crops
            are combined with base codes or with `resident`.
    """

    NEEDED: ClassVar[dict[str, tuple[Split, ...]]] = {
        "fit": ("train", "validation"),
        "validate": ("validation",),
        "test": ("test",),
    }

    def __init__(
        self,
        images: ImageSource,
        bases: Sequence[BaseCode],
        cache_dir: str | Path,
        schedule: Schedule,
        ray: str | None = None,
        steps: int = 16,
        unroll: int = 1,
        min_steps: int = 1,
        max_steps: int = 64,
        batch_size: int = 8,
        eval_batch_size: int = 64,
        train_limit: int = 0,
        eval_limit: int = 0,
        by_heart: bool = False,
        flip: bool = True,
        transpose: bool | None = None,
        workers: int = 0,
        resident: bool = False,
        whole_partitions: bool = False,
    ) -> None:
        super().__init__()
        if not 1 <= min_steps <= max_steps:
            raise SettingError(
                f"expected 1 ≤ masks.min_steps ≤ masks.max_steps; got {min_steps} and {max_steps}"
            )
        if schedule.plans and min_steps > len(schedule.plans):
            raise SettingError(
                f"the model has plans for at most {len(schedule.plans)} steps: expected "
                f"masks.min_steps of at most that, or masks.plans=null; got {min_steps}"
            )
        check_at_least(1, {"datamodule.batch_size": batch_size})
        check_at_least(1, {"datamodule.eval_batch_size": eval_batch_size})
        check_at_least(0, {"datamodule.train_limit": train_limit, "datamodule.workers": workers})
        check_at_least(0, {"datamodule.eval_limit": eval_limit, "masks.unroll": unroll})
        self.cropped = None if by_heart else crops_of(images)
        if self.cropped and not all(isinstance(base, NoBase) for base in bases):
            raise SettingError(
                "random crops can't have base codes, which are computed once per image: expected "
                "base=none, or tiles (datamodule.images.crop=null)"
            )
        if self.cropped and resident:
            raise SettingError(
                "datamodule.resident needs images of one size: expected datamodule.resident=false "
                "and datamodule.workers above 0, or tiles (datamodule.images.crop=null)"
            )
        self.images, self.bases, self.cache_dir, self.ray = images, bases, cache_dir, ray
        self.schedule, self.steps = schedule, steps
        self.unroll, self.min_steps, self.max_steps = unroll, min_steps, max_steps
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.train_limit, self.eval_limit, self.by_heart = train_limit, eval_limit, by_heart
        self.flip, self.workers, self.resident = flip, workers, resident
        self.whole_partitions = whole_partitions
        self.transpose = self.cropped is not None if transpose is None else transpose
        self.pairs: dict[Split, list[Pairs]] = {}  # one `Pairs` per base code
        self.crops: RandomCrops | None = None  # replaces the pairs of the training images
        self.on_device: tuple[Tensor, Tensor, Tensor] | None = None  # resident images, bases, bits

    @property
    def processes(self) -> int:
        """Number of training processes."""
        return self.trainer.world_size if self.trainer else 1

    @property
    def process(self) -> int:
        """Index of this training process, from 0."""
        return self.trainer.global_rank if self.trainer else 0

    def prepare_data(self) -> None:
        """Compute the base codes and cache them; runs in one process per machine."""
        splits = self._paired("fit")
        images = {split: self._load(split) for split in splits}
        # Invalid settings raise an error before the base codes are computed.
        self._lay_out(*images["validation"].shape[1:3])
        for split in splits:
            self.pairs[split] = self._make(images.pop(split))

    def setup(self, stage: str) -> None:
        """Open the cached pairs of the splits of a stage, and compute the partitions."""
        if self.cropped and stage == "fit":
            self.crops = self.cropped.random_crops(self.train_limit)
        for split in self._paired(stage):
            if split not in self.pairs:
                self.pairs[split] = self._make(self._load(split))
        self._lay_out(*next(iter(self.pairs.values()))[0].images.shape[1:3])
        if self.process:  # each training process draws different masks
            torch.manual_seed(torch.initial_seed() + self.process)

    def _paired(self, stage: str) -> list[Split]:
        """The splits of a stage that need pairs; the split with random crops does not."""
        return [split for split in self.NEEDED[stage] if not (self.cropped and split == "train")]

    def _lay_out(self, height: int, width: int) -> None:
        """Compute the partitions for images of the given size."""
        if self.flip and self.transpose and height != width:
            raise SettingError(
                f"images of {width}×{height} pixels can't be transposed: expected square images, "
                "or datamodule.transpose=false"
            )
        if self.schedule.plans:
            self.plan_bounds = plan_bounds(height * width, self.schedule.plans)
        partition = self.schedule.partition(height, width, self.steps)
        self.partition = torch.from_numpy(partition.step_of_pixel).long()
        self.rank = torch.from_numpy(np.argsort(partition.order).reshape(height, width))

    def train_dataloader(self) -> DataLoader[int]:
        """Shuffled training batches, or only their indices if the pairs are resident."""
        if self.resident:
            indices = range(len(self.pairs["train"][0]))
            return DataLoader(
                indices,  # type: ignore[arg-type]
                self.batch_size,
                shuffle=True,
                drop_last=self._fills_a_batch(indices),
                collate_fn=torch.as_tensor,
            )
        if self.crops is not None:  # an epoch has at least one full batch per process
            self.crops.number = max(self.crops.number, self.processes * self.batch_size)
            return self._loader("train", self._crop_batch, self.batch_size, shuffle=True)
        return self._loader("train", self._training_batch, self.batch_size, shuffle=True)

    def on_after_batch_transfer(self, batch: Batch | Tensor, _: int) -> Batch:
        """Convert a batch of indices of resident images, now on the device, to a `Batch`."""
        return batch if isinstance(batch, Batch) else self._training_batch(self._rows(batch))

    def val_dataloader(self) -> DataLoader[int]:
        """Validation batches with the whole partition."""
        return self._loader("validation", self._whole_batch, self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[int]:
        """Test batches with the whole partition."""
        return self._loader("test", self._whole_batch, self.eval_batch_size)

    def _load(self, split: Split) -> np.ndarray:
        overfit = self.by_heart and split == "validation"
        images = self.images.load("train" if overfit else split)
        limit = self.train_limit if split == "train" else self.eval_limit
        return images[: limit or None]

    def _make(self, images: np.ndarray) -> list[Pairs]:
        return [make_pairs(images, base, self.cache_dir, ray=self.ray) for base in self.bases]

    def _loader(self, split: Split, collate, batch_size: int, shuffle: bool = False):  # type: ignore[no-untyped-def]
        images: Any = self.crops if shuffle else None
        if images is None:
            images = PairDataset(self.pairs[split], every=shuffle, alike=self.whole_partitions)
        return DataLoader(
            images,
            batch_size=batch_size,
            shuffle=shuffle,
            sampler=None if shuffle else EachOnce(images, self.processes, self.process),
            drop_last=shuffle and self._fills_a_batch(images),
            collate_fn=collate,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
        )

    def _fills_a_batch(self, images: Sized) -> bool:
        return len(images) // self.processes >= self.batch_size

    def _rows(self, index: Tensor) -> Rows:
        """Resident images with the given indices and random base codes."""
        if self.on_device is None:
            pairs = self.pairs["train"]
            images = torch.from_numpy(np.array(pairs[0].images))
            bases = torch.stack([torch.from_numpy(np.array(rung.bases)) for rung in pairs])
            base_bits = torch.stack([torch.from_numpy(np.array(rung.base_bits)) for rung in pairs])
            device = index.device
            self.on_device = images.to(device), bases.to(device), base_bits.to(device)
        self.rank = self.rank.to(index.device)
        images, bases, base_bits = self.on_device
        rung = random_rungs(len(index), len(bases), index.device, self.whole_partitions)
        image, base = images[index].permute(0, 3, 1, 2), bases[rung, index].permute(0, 3, 1, 2)
        return image, base, base_bits[rung, index], rung

    def _whole_batch(self, rows: Rows) -> Batch:
        partition = self.partition.to(rows[0].device)
        return Batch(*rows, partition.expand(len(rows[0]), -1, -1))

    def _random_partition(self, rung: int) -> Tensor:
        """Step of each pixel in a random or planned partition, int64 (H, W)."""
        least, largest = (1, FEW_STEPS) if rung > 0 else (self.min_steps, self.max_steps)
        min_steps = torch.tensor([float(least)], dtype=torch.float64)
        max_steps = torch.tensor([float(largest)], dtype=torch.float64)
        if not self.schedule.plans:
            height, width = self.rank.shape
            nested = self.schedule.order == "nested"
            bounds = random_bounds(height, width, min_steps, max_steps, ends=nested)
        else:
            bounds = random_plan(min_steps, max_steps, self.plan_bounds)
        bounds = bounds.to(self.rank.device)
        return torch.bucketize(self.rank, bounds[1:], right=True)

    def _crop_batch(self, image: Tensor) -> Batch:
        """A training batch of random crops, which have no base codes."""
        grey = torch.from_numpy(self.bases[0].decode(b"", *image.shape[2:])).permute(2, 0, 1)
        zeros = torch.zeros(len(image), dtype=torch.int64)
        base = grey.expand(image.shape).contiguous()
        return self._training_batch((image, base, zeros, zeros.clone()))

    def _training_batch(self, rows: Rows) -> Batch:
        image, base, base_bits, rung = rows
        if self.flip:
            mirror_at_random((image, base), self.transpose)
        if self.whole_partitions:
            step_of_pixel = self._random_partition(int(rung[0])).expand(len(image), -1, -1)
            return Batch(image, base, base_bits, rung, step_of_pixel)
        if self.unroll == 0:
            return self._whole_batch((image, base, base_bits, rung))
        least = torch.where(rung > 0, 1.0, float(self.min_steps)).double()
        largest = torch.where(rung > 0, float(FEW_STEPS), float(self.max_steps)).double()
        if not self.schedule.plans:
            step_of_pixel = random_windows(self.rank, self.unroll, least, largest)
        else:
            bounds = self.plan_bounds.to(self.rank.device)
            step_of_pixel = planned_windows(self.rank, self.unroll, least, largest, bounds)
        return Batch(image, base, base_bits, rung, step_of_pixel)

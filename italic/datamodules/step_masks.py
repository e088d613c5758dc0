"""The LightningDataModule: images with base codes and random step masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from italic.coding.base_codes.base import NoBase
from italic.datamodules.images import Split
from italic.datamodules.images.crops import RandomCrops, mirror_at_random
from italic.datamodules.pairs import BaseCodes, Pairs
from italic.datamodules.partitions import PartitionSampler, TrainingPartitions
from italic.datamodules.splits import Splits
from italic.errors import SettingError, check_range


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
        """Images and bases, uint8 (B, 3, H, W), base bits and base code indices, int64 (B,)."""
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


class StepMasks(pl.LightningDataModule):
    """Images paired with base reconstructions and step masks.

    Args:
        images: the images of each split.
        base_codes: one or several base codes; training draws from them, validation uses the first
            one.
        partitions: the partitions of training and validation.
        batch_size: number of images in a training batch.
        eval_batch_size: number of images in a validation or test batch.
        flip: whether training images and bases are mirrored left-right at random.
        transpose: whether `flip` uses all eight symmetries of the square: left-right, up-down, and
            rows swapped with columns; None for true with random crops and false with tiles.
        workers: number of data loader processes; 0 to load in the training process.
        resident: whether all training pairs are kept in the memory of the training device, where
            the masks are drawn too; for GPUs that would wait for the data loader.

    Raises:
        SettingError: a batch size or the number of workers is out of range; or random crops are
            combined with base codes or with `resident`.
    """

    NEEDED: ClassVar[dict[str, tuple[Split, ...]]] = {
        "fit": ("train", "validation"),
        "validate": ("validation",),
        "test": ("test",),
    }

    def __init__(
        self,
        images: Splits,
        base_codes: BaseCodes,
        partitions: TrainingPartitions,
        batch_size: int = 8,
        eval_batch_size: int = 64,
        flip: bool = True,
        transpose: bool | None = None,
        workers: int = 0,
        resident: bool = False,
    ) -> None:
        super().__init__()
        check_range("datamodule.batch_size", batch_size, 1)
        check_range("datamodule.eval_batch_size", eval_batch_size, 1)
        check_range("datamodule.workers", workers, 0)
        cropped = images.crops is not None
        if cropped and not all(isinstance(base, NoBase) for base in base_codes.bases):
            raise SettingError(
                "random crops can't have base codes, which are computed once per image: expected "
                "base=none, or tiles (datamodule.images.crop=null)"
            )
        if cropped and resident:
            raise SettingError(
                "datamodule.resident needs images of one size: expected datamodule.resident=false "
                "and datamodule.workers above 0, or tiles (datamodule.images.crop=null)"
            )
        self.images, self.base_codes, self.partitions = images, base_codes, partitions
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.flip, self.transpose = flip, cropped if transpose is None else transpose
        self.workers, self.resident, self.cropped = workers, resident, cropped
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
        """Compute the base codes and cache them; runs in one process per machine.

        Raises:
            SettingError: the partitions or `transpose` do not fit the size of the images.
            DataError: the images are missing, or the base codes can't be computed or cached.
        """
        keys = {split: self._key(split) for split in self._paired("fit")}
        missing = {}
        for split, key in keys.items():
            if pairs := self.base_codes.cached(key):
                self.pairs[split] = pairs
            else:
                missing[split] = self.images.load(split)
        # Invalid settings raise an error before the base codes are computed.
        for images in missing.values():
            self._sampler(images)
        for split in [*missing]:
            self.pairs[split] = self.base_codes.pairs(missing.pop(split), keys[split])
        self.images.random_crops()  # reads the images once: bad files are refused here

    def setup(self, stage: str) -> None:
        """Open the cached pairs of the splits of a stage, and compute the partitions."""
        if stage == "fit":
            self.crops = self.images.random_crops()
        for split in self._paired(stage):
            if split not in self.pairs:
                key = self._key(split)
                pairs = self.base_codes.cached(key)
                self.pairs[split] = pairs or self.base_codes.pairs(self.images.load(split), key)
        self.sampler = self._sampler(next(iter(self.pairs.values()))[0].images)
        if self.process:  # each training process draws different masks
            torch.manual_seed(torch.initial_seed() + self.process)

    def _key(self, split: Split) -> str | None:
        return self.images.key(split) if self.base_codes.uses_cache else None

    def _paired(self, stage: str) -> list[Split]:
        """The splits of a stage that need pairs; the split with random crops does not."""
        return [split for split in self.NEEDED[stage] if not (self.cropped and split == "train")]

    def _sampler(self, images: np.ndarray) -> PartitionSampler:
        """The sampler for images of the size of these, (N, H, W, 3)."""
        height, width = images.shape[1:3]
        if self.flip and self.transpose and height != width:
            raise SettingError(
                f"images of {width}×{height} pixels can't be transposed: expected square images, "
                "or datamodule.transpose=false"
            )
        return PartitionSampler(self.partitions, height, width)

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
        """Convert a batch of indices of resident images, int64 (B,) on the device, to a `Batch`.

        A `Batch` is returned unchanged.
        """
        return batch if isinstance(batch, Batch) else self._training_batch(self._rows(batch))

    def val_dataloader(self) -> DataLoader[int]:
        """Validation batches with the whole partition."""
        return self._loader("validation", self._whole_batch, self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[int]:
        """Test batches with the whole partition."""
        return self._loader("test", self._whole_batch, self.eval_batch_size)

    def _loader(self, split: Split, collate, batch_size: int, shuffle: bool = False):  # type: ignore[no-untyped-def]
        images: Any = self.crops if shuffle else None
        if images is None:
            alike = self.partitions.whole_partitions
            images = PairDataset(self.pairs[split], every=shuffle, alike=alike)
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
        images, bases, base_bits = self.on_device
        alike = self.partitions.whole_partitions
        rung = random_rungs(len(index), len(bases), index.device, alike)
        image, base = images[index].permute(0, 3, 1, 2), bases[rung, index].permute(0, 3, 1, 2)
        return image, base, base_bits[rung, index], rung

    def _crop_batch(self, image: Tensor) -> Batch:
        """A training batch of random crops, which have no base codes."""
        grey = torch.from_numpy(self.base_codes.bases[0].decode(b"", *image.shape[2:]))
        zeros = torch.zeros(len(image), dtype=torch.int64)
        base = grey.permute(2, 0, 1).expand(image.shape).contiguous()
        return self._training_batch((image, base, zeros, zeros.clone()))

    def _training_batch(self, rows: Rows) -> Batch:
        image, base, _, rung = rows
        if self.flip:
            mirror_at_random((image, base), self.transpose)
        return Batch(*rows, self.sampler.random(rung))

    def _whole_batch(self, rows: Rows) -> Batch:
        return Batch(*rows, self.sampler.whole(rows[3]))

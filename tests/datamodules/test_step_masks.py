import itertools
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from italic.coding.base_codes.base import BaseCode, Ladder, NoBase
from italic.datamodules.pairs import BaseCodes
from italic.datamodules.partitions import (
    PartitionSampler,
    TrainingPartitions,
    plan_bounds,
)
from italic.datamodules.splits import Splits
from italic.datamodules.step_masks import EachOnce, StepMasks
from italic.errors import SettingError
from italic.orders import pixel_order
from italic.schedule import Schedule

RANK = torch.from_numpy(np.argsort(pixel_order("nested", 16, 16)).reshape(16, 16))


class Noise:
    """Random images; the first pixel of each image holds its index."""

    def load(self, split: str) -> np.ndarray:
        images = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
        images[:, 0, 0, 0] = np.arange(20)
        return images


PLANS = {1: [256], 2: [100, 156], 3: [10, 90, 156], 4: [4, 12, 84, 156]}


def unprepared(
    path: Path,
    source: Any = None,
    bases: Sequence[BaseCode] = (NoBase(),),
    limits: dict[str, Any] | None = None,
    partitions: dict[str, Any] | None = None,
    **options: Any,
) -> StepMasks:
    """A data module; `limits` are arguments of `Splits`."""
    images = Splits(source or Noise(), **(limits or {}))
    drawn = TrainingPartitions(**{"schedule": Schedule(), "steps": 16, **(partitions or {})})
    return StepMasks(images, BaseCodes(bases, str(path)), drawn, **options)


def module(path: Path, **options: Any) -> StepMasks:
    data = unprepared(path, **{"batch_size": 4, **options})
    data.prepare_data()
    data.setup("fit")
    return data


class Keyed(Noise):
    """Images with a key; counts how often they are loaded."""

    def __init__(self) -> None:
        self.loads, self.state = 0, "first"

    def key(self, split: str) -> str:
        return f"{split} {self.state}"

    def load(self, split: str) -> np.ndarray:
        self.loads += 1
        return super().load(split)


def test_images_with_cached_base_codes_are_not_loaded_again(tmp_path: Path) -> None:
    source = Keyed()
    base = Ladder([45]).rungs
    made = module(tmp_path, source=source, bases=base)
    again = module(tmp_path, source=source, bases=base)
    assert source.loads == 2  # training and validation, once each
    for split in ("train", "validation"):
        (one,), (other,) = made.pairs[split], again.pairs[split]  # type: ignore[index]
        assert one.key == other.key and np.array_equal(one.images, other.images)
        assert np.array_equal(one.bases, other.bases)
    source.state = "changed"
    assert module(tmp_path, source=source, bases=base).pairs["train"][0].key != one.key
    assert source.loads == 4


def test_keys_of_splits_follow_the_limits() -> None:
    source = Keyed()
    keys = {
        Splits(source, **limits).key("validation")
        for limits in ({}, {"eval_limit": 2}, {"validate_on_train": True})
    }
    assert len(keys) == 3 and None not in keys
    assert Splits(source, train_limit=2).key("validation") in keys
    assert Splits(Noise()).key("train") is None


def test_keys_differ_by_class_and_split() -> None:
    """A user-defined key may leave them out."""

    class One(Noise):
        def key(self, split: str) -> str:
            return "same"

    class Other(One):
        pass

    keys = [Splits(source).key(split) for source in (One(), Other()) for split in ("train", "test")]
    assert len(set(keys)) == 4


@pytest.mark.parametrize("number, processes", [(1, 1), (5, 2), (6, 3), (7, 3)])
def test_processes_share_images_without_repeating_any(number: int, processes: int) -> None:
    images: Any = range(number)
    shares = [list(EachOnce(images, processes, process)) for process in range(processes)]
    assert sorted(itertools.chain(*shares)) == list(images)
    assert all(len(EachOnce(images, processes, p)) == len(shares[p]) for p in range(processes))


def test_each_process_validates_something() -> None:
    images: Any = range(2)
    with pytest.raises(ValueError, match=r"fewer trainer\.devices"):
        EachOnce(images, 3, 2)


def test_processes_draw_other_masks(tmp_path: Path) -> None:
    step_of_pixel = []
    for process in range(2):
        torch.manual_seed(0)
        data = unprepared(tmp_path, batch_size=4, flip=False)
        trainer: Any = SimpleNamespace(world_size=2, global_rank=process)
        data.trainer = trainer
        data.setup("fit")
        step_of_pixel.append(torch.cat([batch.step_of_pixel for batch in data.train_dataloader()]))
    assert not torch.equal(*step_of_pixel)


def test_plans_of_other_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="planned for images of 256 pixels, but these have 1024"):
        plan_bounds(1024, PLANS)
    schedule = Schedule(sizes="planned", plans=PLANS)
    data = module(tmp_path, partitions={"schedule": schedule, "steps": 3})
    assert data.sampler.fixed.flatten().bincount().tolist() == PLANS[3]
    assert (next(iter(data.train_dataloader())).step_of_pixel == 0).flatten(1).any(1).all()


def test_every_rung_is_drawn_for_training_and_the_first_is_validated(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rungs = Ladder([None, 40, 20]).rungs
    data = module(tmp_path, bases=rungs, batch_size=20, flip=False)
    (batch,) = data.train_dataloader()
    assert set(batch.rung.tolist()) == {0, 1, 2}
    for image, base, bits, rung in zip(*batch[:4], strict=True):
        pairs, number = data.pairs["train"][rung], int(image[0, 0, 0])
        assert torch.equal(base, torch.from_numpy(pairs.bases[number].transpose(2, 0, 1)))
        assert bits == pairs.base_bits[number]
    (whole,) = data.val_dataloader()
    assert whole.rung.tolist() == [0] * 20 and whole.base_bits.sum() == 0


def test_rungs_after_the_first_have_a_largest_number_of_steps() -> None:
    limits = {"steps": 3, "min_steps": 3, "max_steps": 5, "few_steps": 2, "whole_partitions": True}
    sampler = PartitionSampler(TrainingPartitions(Schedule(), **limits), 16, 16)
    for rung, numbers in ((0, {3, 4, 5}), (1, {1, 2})):
        drawn = [sampler.random(torch.full((2,), rung)) for _ in range(50)]
        assert {len(steps.unique()) for steps in drawn} == numbers


def test_images_without_contexts_are_refused_for_whole_partitions() -> None:
    PartitionSampler(TrainingPartitions(Schedule(), 2, whole_partitions=True), 7, 7)
    with pytest.raises(SettingError, match="6×8 pixels are too small"):
        PartitionSampler(TrainingPartitions(Schedule(), 2, whole_partitions=True), 6, 8)
    PartitionSampler(TrainingPartitions(Schedule(), 2), 6, 8)


def test_resident_pairs_are_the_same_pairs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rungs = Ladder([None, 40]).rungs
    data = module(tmp_path, bases=rungs, batch_size=20, flip=False, resident=True)
    (index,) = data.train_dataloader()
    batch = data.on_after_batch_transfer(index, 0)
    assert set(batch.rung.tolist()) == {0, 1} and batch.step_of_pixel.shape == (20, 16, 16)
    for image, base, bits, rung in zip(*batch[:4], strict=True):
        pairs, number = data.pairs["train"][rung], int(image[0, 0, 0])
        assert torch.equal(image, torch.from_numpy(pairs.images[number].transpose(2, 0, 1)))
        assert torch.equal(base, torch.from_numpy(pairs.bases[number].transpose(2, 0, 1)))
        assert bits == pairs.base_bits[number]
    (whole,) = data.val_dataloader()
    assert data.on_after_batch_transfer(whole, 0) is whole


def test_training_batches_carry_windows_and_validation_the_partition(tmp_path: Path) -> None:
    data = module(tmp_path, partitions={"steps": 4, "unroll": 2})
    batch = next(iter(data.train_dataloader()))
    assert batch.image.dtype == batch.base.dtype == torch.uint8
    assert batch.image.shape == batch.base.shape == (4, 3, 16, 16)
    assert batch.step_of_pixel.shape == (4, 16, 16) and batch.base_bits.tolist() == [0] * 4
    whole = next(iter(data.val_dataloader()))
    assert torch.equal(whole.step_of_pixel[0].unique(), torch.arange(4))


def test_unrolled_over_all_steps_trains_on_the_partition(tmp_path: Path) -> None:
    data = module(tmp_path, partitions={"steps": 4, "unroll": 0})
    assert torch.equal(next(iter(data.train_dataloader())).step_of_pixel[0], data.sampler.fixed)


def test_every_image_is_seen_once_an_epoch_perhaps_mirrored(tmp_path: Path) -> None:
    data = module(tmp_path)
    seen = torch.cat([batch.image for batch in data.train_dataloader()])
    originals = torch.from_numpy(Noise().load("train")).permute(0, 3, 1, 2)
    mirrored = 0
    for image in seen:
        straight = (originals == image).flatten(1).all(1)
        flipped = (originals.flip(-1) == image).flatten(1).all(1)
        assert straight.any() or flipped.any()
        mirrored += int(flipped.any())
    assert len(seen) == 20 and 0 < mirrored < 20


def test_workers_read_the_same_way_and_a_limit_cuts_validation(tmp_path: Path) -> None:
    data = module(tmp_path, limits={"eval_limit": 5}, workers=1, flip=False, eval_batch_size=3)
    assert sum(len(batch.image) for batch in data.train_dataloader()) == 20
    assert [len(batch.image) for batch in data.val_dataloader()] == [3, 2]


def test_a_second_training_finds_resident_pairs_and_ranks_on_the_device(tmp_path: Path) -> None:
    data = module(tmp_path, resident=True, flip=False)
    indices = torch.arange(4, device="meta")
    for _ in range(2):
        assert data.on_after_batch_transfer(indices, 0).step_of_pixel.device.type == "meta"
        data.setup("fit")


@pytest.mark.parametrize(
    "wrong",
    [
        *({"partitions": {"min_steps": 0}}, {"partitions": {"min_steps": 3, "max_steps": 2}}),
        *({"limits": {"train_limit": -1}}, {"partitions": {"unroll": -1}}, {"workers": -1}),
        *({"partitions": {"max_steps": 10**12}}, {"batch_size": 10**20}),
    ],
    ids=str,
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected 1 ≤|must be 0|must be from 1 to"):
        unprepared(tmp_path, **wrong)


class Numbered:
    """Images that hold their index, from 0 in training and from 100 in validation."""

    def load(self, split: str) -> np.ndarray:
        first = 0 if split == "train" else 100
        return np.arange(first, first + 5, dtype=np.uint8).repeat(768).reshape(5, 16, 16, 3)


@pytest.mark.parametrize("overfits, validated", [(True, [0, 1, 2]), (False, [100, 101, 102])])
def test_limits_apply_and_validation_can_use_training_images(
    overfits: bool, validated: list[int], tmp_path: Path
) -> None:
    limits = {"train_limit": 3, "eval_limit": 3, "validate_on_train": overfits}
    data = module(tmp_path, source=Numbered(), limits=limits)
    (batch,), (whole,) = data.train_dataloader(), data.val_dataloader()
    assert sorted(batch.image[:, 0, 0, 0].tolist()) == [0, 1, 2]
    assert whole.image[:, 0, 0, 0].tolist() == validated


def partitions(path: Path, batches: int = 12, **options: Any) -> list[np.ndarray]:
    """Bounds of the partitions of some training batches."""
    torch.manual_seed(0)
    data = module(path, partitions={"whole_partitions": True, **options})
    found = []
    while len(found) < batches:
        for batch in data.train_dataloader():
            first = batch.step_of_pixel[0]
            assert (batch.step_of_pixel == first).all()  # the same for all images
            in_order = first.flatten()[torch.argsort(RANK.flatten())]
            assert (in_order.diff() >= 0).all() and in_order[0] == 0
            assert torch.equal(in_order.unique(), torch.arange(int(in_order[-1]) + 1))
            found.append(np.cumsum(in_order.bincount().numpy()))
    return found


def test_whole_partitions_are_segments_of_the_order(tmp_path: Path) -> None:
    few = partitions(tmp_path, min_steps=2, max_steps=4)
    assert {len(ends) for ends in few} == {2, 3, 4}
    many = partitions(tmp_path, min_steps=16, max_steps=32)
    assert all({4, 16, 64} <= set(ends.tolist()) for ends in many)
    uneven = partitions(tmp_path, schedule=Schedule("nested", "planned", plans=PLANS))
    assert {tuple(np.diff(ends, prepend=0)) for ends in uneven} <= set(map(tuple, PLANS.values()))


def test_whole_partitions_have_one_base_code_a_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rungs = Ladder([None, 40]).rungs
    drawn = {"whole_partitions": True, "min_steps": 8}
    data = module(tmp_path, bases=rungs, partitions=drawn, batch_size=5, flip=False)
    seen = set()
    for _ in range(5):
        for batch in data.train_dataloader():
            (rung,) = set(batch.rung.tolist())
            seen.add(rung)
            assert rung == 0 or batch.step_of_pixel.max() < 4
    assert seen == {0, 1}

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from italic.coding.base_codes.base import Ladder, NoBase
from italic.datamodules.step_masks import (
    EachOnce,
    StepMasks,
    plan_bounds,
    planned_windows,
    random_windows,
)
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


def module(path: Path, schedule: Schedule | None = None, **options: object) -> StepMasks:
    schedule = schedule or Schedule()
    data = StepMasks(Noise(), [NoBase()], path, schedule, batch_size=4, **options)  # type: ignore[arg-type]
    data.prepare_data()
    data.setup("fit")
    return data


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
        data = StepMasks(Noise(), [NoBase()], tmp_path, Schedule(), batch_size=4, flip=False)
        trainer: Any = SimpleNamespace(world_size=2, global_rank=process)
        data.trainer = trainer
        data.setup("fit")
        step_of_pixel.append(torch.cat([batch.step_of_pixel for batch in data.train_dataloader()]))
    assert not torch.equal(*step_of_pixel)


def windows(images: int, steps: int, min_steps: int, max_steps: int) -> torch.Tensor:
    limits = (torch.full((images,), float(limit)).double() for limit in (min_steps, max_steps))
    return random_windows(RANK, steps, *limits)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("max_steps", [1, 64])
def test_windows_are_segments_of_the_order_with_something_due(steps: int, max_steps: int) -> None:
    torch.manual_seed(0)
    step_of_pixel = windows(500, steps, 1, max_steps).flatten(1)
    in_order = step_of_pixel[:, torch.argsort(RANK.flatten())]
    assert (in_order.diff(dim=1) >= 0).all()
    assert in_order.min() >= -1 and in_order.max() <= steps
    assert ((step_of_pixel >= 0) & (step_of_pixel < steps)).any(1).all()


def test_every_pixel_is_due_equally_often_relative_to_its_steps_size() -> None:
    """Steps are drawn in proportion to their pixels, so a window's mean cost is the image's."""
    torch.manual_seed(0)
    step_of_pixel = windows(40_000, 1, 1, 16)
    due = (step_of_pixel == 0).double()
    weight = (due / due.sum((1, 2), keepdim=True)).mean(0) * 256
    assert weight.mean().item() == pytest.approx(1)
    assert ((weight - 1).abs() < 0.25).all()


def planned(images: int, steps: int, min_steps: int, max_steps: int) -> torch.Tensor:
    limits = (torch.full((images,), float(limit)).double() for limit in (min_steps, max_steps))
    return planned_windows(RANK, steps, *limits, plan_bounds(256, PLANS))


def test_planned_windows_are_the_steps_of_plans_drawn_by_their_pixels() -> None:
    torch.manual_seed(0)
    step_of_pixel = planned(20_000, 1, 3, 3)
    known, due = ((step_of_pixel < 0).sum((1, 2)), (step_of_pixel == 0).sum((1, 2)))
    for before, size in ((0, 10), (10, 90), (100, 156)):
        share = ((known == before) & (due == size)).double().mean().item()
        assert share == pytest.approx(size / 256, abs=0.01)
    in_order = planned(500, 2, 1, 64).flatten(1)[:, torch.argsort(RANK.flatten())]
    assert (in_order.diff(dim=1) >= 0).all() and ((in_order == 0) | (in_order == 1)).any(1).all()


def test_plans_of_other_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="planned for images of 256 pixels, but these have 1024"):
        plan_bounds(1024, PLANS)
    data = module(tmp_path, Schedule(sizes="planned", plans=PLANS), steps=3)
    assert data.partition.flatten().bincount().tolist() == PLANS[3]
    assert (next(iter(data.train_dataloader())).step_of_pixel == 0).flatten(1).any(1).all()


@pytest.mark.parametrize("least, most", [(1, 1), (1, 4), (2, 64)])
def test_the_numbers_of_steps_keep_to_their_limits(least: int, most: int) -> None:
    torch.manual_seed(0)
    whole = windows(2000, 64, least, most)
    in_one_step = (whole == 0).all(2).all(1).double().mean()
    assert (in_one_step > 0) == (least == 1) and (in_one_step == 1) == (most == 1)


def test_every_rung_is_drawn_for_training_and_the_first_is_validated(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rungs = Ladder([None, 40, 20]).rungs
    data = StepMasks(Noise(), rungs, tmp_path, Schedule(), batch_size=20, flip=False)
    data.prepare_data()
    data.setup("fit")
    (batch,) = data.train_dataloader()
    assert set(batch.rung.tolist()) == {0, 1, 2}
    for image, base, bits, rung in zip(*batch[:4], strict=True):
        pairs, number = data.pairs["train"][rung], int(image[0, 0, 0])
        assert torch.equal(base, torch.from_numpy(pairs.bases[number].transpose(2, 0, 1)))
        assert bits == pairs.base_bits[number]
    (whole,) = data.val_dataloader()
    assert whole.rung.tolist() == [0] * 20 and whole.base_bits.sum() == 0


def test_resident_pairs_are_the_same_pairs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rungs = Ladder([None, 40]).rungs
    data = StepMasks(Noise(), rungs, tmp_path, Schedule(), batch_size=20, flip=False, resident=True)
    data.prepare_data()
    data.setup("fit")
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
    data = module(tmp_path, steps=4, unroll=2)
    batch = next(iter(data.train_dataloader()))
    assert batch.image.dtype == batch.base.dtype == torch.uint8
    assert batch.image.shape == batch.base.shape == (4, 3, 16, 16)
    assert batch.step_of_pixel.shape == (4, 16, 16) and batch.base_bits.tolist() == [0] * 4
    whole = next(iter(data.val_dataloader()))
    assert torch.equal(whole.step_of_pixel[0].unique(), torch.arange(4))


def test_unrolled_over_all_steps_trains_on_the_partition(tmp_path: Path) -> None:
    data = module(tmp_path, steps=4, unroll=0)
    assert torch.equal(next(iter(data.train_dataloader())).step_of_pixel[0], data.partition)


def test_every_image_is_seen_once_an_epoch_perhaps_mirrored(tmp_path: Path) -> None:
    data = module(tmp_path, steps=4)
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
    data = module(tmp_path, steps=4, workers=1, flip=False, eval_limit=5, eval_batch_size=3)
    assert sum(len(batch.image) for batch in data.train_dataloader()) == 20
    assert [len(batch.image) for batch in data.val_dataloader()] == [3, 2]


def test_a_second_training_finds_resident_pairs_and_ranks_on_the_device(tmp_path: Path) -> None:
    data = module(tmp_path, resident=True, flip=False)
    indices = torch.arange(4, device="meta")
    for _ in range(2):
        assert data.on_after_batch_transfer(indices, 0).step_of_pixel.device.type == "meta"
        data.setup("fit")


@pytest.mark.parametrize(
    "wrong", [{"min_steps": 0}, {"min_steps": 3, "max_steps": 2}, {"train_limit": -1}], ids=str
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"expected 1 ≤|must be 0"):
        module(tmp_path, **wrong)


class Numbered:
    """Images that hold their index, from 0 in training and from 100 in validation."""

    def load(self, split: str) -> np.ndarray:
        first = 0 if split == "train" else 100
        return np.arange(first, first + 5, dtype=np.uint8).repeat(768).reshape(5, 16, 16, 3)


@pytest.mark.parametrize("by_heart, validated", [(True, [0, 1, 2]), (False, [100, 101, 102])])
def test_limits_cut_and_what_is_learnt_by_heart_is_validated(
    by_heart: bool, validated: list[int], tmp_path: Path
) -> None:
    limits = {"train_limit": 3, "eval_limit": 3}
    data = StepMasks(Numbered(), [NoBase()], tmp_path, Schedule(), **limits, by_heart=by_heart)  # type: ignore[arg-type]
    data.prepare_data()
    data.setup("fit")
    (batch,), (whole,) = data.train_dataloader(), data.val_dataloader()
    assert sorted(batch.image[:, 0, 0, 0].tolist()) == [0, 1, 2]
    assert whole.image[:, 0, 0, 0].tolist() == validated


def partitions(path: Path, batches: int = 12, **options: object) -> list[np.ndarray]:
    """Bounds of the partitions of some training batches."""
    torch.manual_seed(0)
    data = module(path, whole_partitions=True, **options)  # type: ignore[arg-type]
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
    options = {"batch_size": 5, "flip": False, "whole_partitions": True, "min_steps": 8}
    data = StepMasks(Noise(), rungs, tmp_path, Schedule(), **options)  # type: ignore[arg-type]
    data.prepare_data()
    data.setup("fit")
    seen = set()
    for _ in range(5):
        for batch in data.train_dataloader():
            (rung,) = set(batch.rung.tolist())
            seen.add(rung)
            assert rung == 0 or batch.step_of_pixel.max() < 4
    assert seen == {0, 1}

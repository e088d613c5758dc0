import numpy as np
import pytest
import torch

from italic.datamodules.partitions import plan_bounds, planned_windows, random_windows
from italic.orders import pixel_order

RANK = torch.from_numpy(np.argsort(pixel_order("nested", 16, 16)).reshape(16, 16))
PLANS = {1: [256], 2: [100, 156], 3: [10, 90, 156], 4: [4, 12, 84, 156]}


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


@pytest.mark.parametrize("least, most", [(1, 1), (1, 4), (2, 64)])
def test_the_numbers_of_steps_keep_to_their_limits(least: int, most: int) -> None:
    torch.manual_seed(0)
    whole = windows(2000, 64, least, most)
    in_one_step = (whole == 0).all(2).all(1).double().mean()
    assert (in_one_step > 0) == (least == 1) and (in_one_step == 1) == (most == 1)

import math
import pickle
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from italic.errors import SettingError
from italic.orders import ORDERS, TILES, tile_steps
from italic.schedule import (
    LARGEST_STRIDE,
    SIZES,
    SMALLEST_LATTICE,
    Partition,
    Schedule,
    step_bounds,
)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("pixels, steps", [(1, 1), (5, 5), (7, 3), (1024, 16), (1024, 1024)])
def test_bounds_go_through_all_pixels_with_no_empty_step(
    sizes: str, pixels: int, steps: int
) -> None:
    bounds = step_bounds(pixels, steps, sizes, exponent=2.2)
    assert bounds[0] == 0 and bounds[-1] == pixels and (np.diff(bounds) > 0).all()
    assert len(bounds) == steps + 1


def test_powers_are_rounded_alike_by_all_libraries() -> None:
    # The exact value is 129,070,030.50000048…; numpy with AVX-512 gives a smaller one.
    bounds = step_bounds(12508 * 16677, 1368, "power", 1.5)
    assert bounds[1129] == 129_070_031


def test_equal_and_power_sizes() -> None:
    assert np.diff(step_bounds(1024, 16)).tolist() == [64] * 16
    assert step_bounds(1024, 4, "power", 1.0).tolist() == [0, 64, 256, 576, 1024]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((16, 17), "from 1 to the number of pixels, 16"),
        ((16, 0), "from 1"),
        ((16, 4, "geometric"), "expected equal, power, or a list"),
        ((16, 4, "planned"), "expected equal, power, or a list"),
        ((16, 4, [1, 2]), "must be 4 numbers above 0"),
    ],
)
def test_impossible_steps_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        step_bounds(*arguments)


@pytest.mark.parametrize(
    "sizes",
    [
        "geometric",
        "",
        [],
        4,
        None,
        {"a": 1},
        ["a", "b"],
        [[1], [2]],
        [1, 0],
        [1, math.inf],
        [1, 1e300],
        [1, True],
    ],
)
def test_sizes_that_are_neither_a_name_nor_numbers_are_refused(sizes: Any) -> None:
    with pytest.raises(SettingError, match="expected equal, power, planned, or a list of numbers"):
        Schedule(sizes=sizes)
    with pytest.raises(SettingError, match="expected equal, power, or a list of numbers"):
        step_bounds(16, 2, sizes)


@pytest.mark.parametrize("exponent", [-1.0, math.nan, math.inf])
def test_an_exponent_is_checked_whatever_the_sizes(exponent: float) -> None:
    for sizes in (*SIZES, "planned", [1, 2]):
        with pytest.raises(SettingError, match="the exponent of the step sizes must be"):
            Schedule(sizes=sizes, exponent=exponent)
    with pytest.raises(SettingError, match="the exponent of the step sizes must be"):
        step_bounds(16, 4, "equal", exponent)


@pytest.mark.parametrize(
    "name, counts",
    [
        ("normal", [1] * 16),
        ("uneven_1", [1, 1, 1, 1, 2, 2, 2, 2, 4, 4, 4, 4, 4, 8, 8, 16]),
        ("uneven_2", [1, 1, 1, 1, 2, 2, 4, 4, 4, 4, 4, 4, 8, 8, 8, 8]),
    ],
)
def test_given_sizes_reproduce_the_tiles_steps(name: str, counts: list[int]) -> None:
    tile = np.array(TILES[name])
    assert np.bincount(tile.ravel())[1:].tolist() == counts
    steps = Schedule(name, counts).partition(32, 32, 16).step_of_pixel
    assert np.array_equal(steps + 1, tile_steps(name, 32, 32))


def test_given_sizes_hold_for_their_number_of_steps_and_plans_for_theirs() -> None:
    listed = Schedule(sizes=[1, 3], exponent=2.0)
    assert listed.bounds(64, 2).tolist() == [0, 16, 64]
    assert np.array_equal(listed.bounds(64, 3), step_bounds(64, 3, "equal"))
    planned = Schedule(sizes="planned", exponent=2.0, plans={2: [5, 59]})
    assert planned.bounds(64, 2).tolist() == [0, 5, 64]
    assert np.array_equal(planned.bounds(64, 3), step_bounds(64, 3, "power", 2.0))
    # Plans that `sizes` does not use.
    assert np.array_equal(
        Schedule(sizes="equal", plans={2: [5, 59]}).bounds(64, 2), step_bounds(64, 2, "equal")
    )


def test_schedules_of_other_plans_share_nothing() -> None:
    @lru_cache
    def bounds(schedule: Schedule) -> list[int]:
        return schedule.bounds(64, 2).tolist()

    plans: dict[int, Sequence[float]] = {2: [5, 59]}
    one, same = (Schedule(sizes="planned", plans=dict(plans)) for _ in range(2))
    plans[2] = [6, 58]
    other = Schedule(sizes="planned", plans=plans)
    assert one == same and hash(one) == hash(same) and one != other
    assert bounds(one) == bounds(same) == [0, 5, 64] and bounds(other) == [0, 6, 64]
    parts = [schedule.partition(8, 8, 2) for schedule in (one, other)]
    assert [part.bounds.tolist() for part in parts] == [[0, 5, 64], [0, 6, 64]]
    plans[2] = [7, 57]  # the schedule has a copy
    assert other.partition(8, 8, 2).bounds.tolist() == other.bounds(64, 2).tolist() == [0, 6, 64]
    assert hash(Schedule(sizes=[1, 2])) == hash(Schedule(sizes=(1, 2)))


def test_the_partitions_of_last_are_remembered() -> None:
    schedule = Schedule()
    assert schedule.partition(8, 8, 3) is schedule.partition(8, 8, 3)
    for steps in range(1, 30):
        assert schedule.partition(8, 8, steps).steps == steps
    assert schedule.partition(4, 16, 3).step_of_pixel.shape == (4, 16)
    again = pickle.loads(pickle.dumps(schedule))
    assert again == schedule and np.array_equal(again.bounds(64, 7), schedule.bounds(64, 7))


@st.composite
def partitions(draw: st.DrawFn) -> Partition:
    """Partitions of all orders and several sizes and numbers of steps, up to one per pixel."""
    height, width = draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    pixels = height * width
    schedule = Schedule(
        draw(st.sampled_from(ORDERS)), draw(st.sampled_from(SIZES)), draw(st.floats(0, 3))
    )
    return schedule.partition(
        height, width, draw(st.integers(1, min(pixels, 20)) | st.just(pixels))
    )


def on_lattice(partition: Partition, pixels: np.ndarray, stride: int) -> bool:
    """Whether all flat indices are on the lattice of a stride."""
    y, x = np.divmod(pixels, partition.width)
    return not (y % stride).any() and not (x % stride).any()


@given(partitions())
def test_steps_code_each_pixel_once(partition: Partition) -> None:
    due = [partition.due(step) for step in range(partition.steps)]
    assert sorted(np.concatenate(due)) == list(range(partition.height * partition.width))
    for step, pixels in enumerate(due):
        assert len(pixels) and (partition.step_of_pixel.ravel()[pixels] == step).all()


@given(partitions(), st.sampled_from([1, 4, 64]))
def test_a_step_has_the_coarsest_lattice_with_all_that_is_known_or_due(
    partition: Partition, largest: int
) -> None:
    for step, stride in enumerate(partition.strides_of_steps(largest).tolist()):
        pixels = partition.order[: partition.bounds[step + 1]]
        assert on_lattice(partition, pixels, stride)
        assert stride == largest or not on_lattice(partition, pixels, 2 * stride)


@given(partitions())
def test_a_pixel_has_the_coarsest_lattice_with_it_and_all_that_is_known(
    partition: Partition,
) -> None:
    for step in range(partition.steps):
        known = partition.order[: partition.bounds[step]]
        for pixel in partition.due(step):
            stride = int(partition.strides.ravel()[pixel])
            pixels = np.append(known, pixel)
            assert on_lattice(partition, pixels, stride)
            assert stride == LARGEST_STRIDE or not on_lattice(partition, pixels, 2 * stride)


@given(partitions())
def test_contexts_are_of_what_is_known_on_the_next_lattice(partition: Partition) -> None:
    steps, contexts = partition.step_of_pixel, partition.context_steps
    assert (contexts <= steps).all()
    for stride in np.unique(partition.strides):
        lattice = steps[:: 2 * stride, :: 2 * stride].ravel()
        here = partition.strides == stride
        pairs = np.unique(np.stack([steps[here], contexts[here]], axis=1), axis=0)
        assert len(pairs) == len(np.unique(steps[here]))  # the pixels of a step share a context
        for step, context in pairs:
            known = (lattice < step).sum()
            assert (context == -1) == (known == 0 or lattice.size < SMALLEST_LATTICE)
            if context >= 0:
                had = (lattice < context).sum()
                assert context in steps[here] and 0 < had <= known
                # Complete lattices are used at once, others until their known pixels double.
                assert had == known if known == lattice.size else known < 2 * had
        distinct = set(pairs[:, 1].tolist()) - {-1}
        assert len(distinct) <= math.ceil(math.log2(lattice.size)) + 1


def test_steps_that_end_with_lattices_have_one_context_a_stride() -> None:
    partition = Schedule(sizes=[1, 3, 12, 48, 192]).partition(16, 16, 5)
    assert partition.strides_of_steps(64).tolist() == [64, 8, 4, 2, 1]
    for stride in (8, 4, 2, 1):
        contexts = partition.context_steps[partition.strides == stride]
        assert len(np.unique(contexts)) == 1

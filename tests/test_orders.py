import numpy as np
import pytest

from italic import orders


@pytest.mark.parametrize("name", orders.ORDERS)
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (8, 8), (13, 5), (32, 32)])
def test_every_order_visits_every_pixel_once(name: str, size: tuple[int, int]) -> None:
    order = orders.pixel_order(name, *size)
    assert np.array_equal(np.sort(order), np.arange(size[0] * size[1]))


def test_prefixes_of_the_nested_order_are_lattices() -> None:
    order = orders.pixel_order("nested", 32, 32)
    for level in range(6):
        y, x = np.divmod(order[: 4**level], 32)
        spacing = 32 >> level
        assert not (y % spacing).any() and not (x % spacing).any()
    y, x = np.divmod(order[: 2 * 256], 32)
    assert np.array_equal(y % 2, x % 2)  # the quincunx


def test_nested_order_begins_with_the_quad_tile() -> None:
    assert orders.pixel_order("nested", 2, 2).tolist() == [0, 3, 1, 2]
    assert orders.pixel_order("quad", 2, 2).tolist() == [0, 3, 1, 2]


@pytest.mark.parametrize("name", orders.TILES)
def test_a_tiles_own_steps_are_segments_of_its_order(name: str) -> None:
    steps = orders.tile_steps(name, 32, 32).ravel()
    assert (np.diff(steps[orders.pixel_order(name, 32, 32)]) >= 0).all()


def test_unknown_orders_and_empty_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown pixel order 'no_such_order'"):
        orders.pixel_order("no_such_order", 4, 4)
    with pytest.raises(ValueError, match="0×4"):
        orders.pixel_order("nested", 0, 4)

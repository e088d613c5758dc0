import numpy as np
import pytest

from italic import masks


@pytest.mark.parametrize("name", masks.ORDERS)
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (8, 8), (13, 5), (32, 32)])
def test_every_order_visits_every_pixel_once(name: str, size: tuple[int, int]) -> None:
    order = masks.pixel_order(name, *size)
    assert np.array_equal(np.sort(order), np.arange(size[0] * size[1]))


def test_prefixes_of_the_nested_order_are_lattices() -> None:
    order = masks.pixel_order("nested", 32, 32)
    for level in range(6):
        y, x = np.divmod(order[: 4**level], 32)
        spacing = 32 >> level
        assert not (y % spacing).any() and not (x % spacing).any()
    y, x = np.divmod(order[: 2 * 256], 32)
    assert np.array_equal(y % 2, x % 2)  # the quincunx


@pytest.mark.parametrize("name", ["nested", "normal", "raster"])
def test_strides_are_those_of_the_coarsest_lattices(name: str) -> None:
    order = masks.pixel_order(name, 11, 14)
    strides = masks.lattice_strides(order, 14, 4)
    assert len(strides) == 11 * 14 + 1
    for count, stride in enumerate(strides):
        y, x = np.divmod(order[:count], 14)
        fit = [s for s in (1, 2, 4) if not (y % s).any() and not (x % s).any()]
        assert stride == max(fit)
    if name == "nested":
        assert np.bincount(strides)[4] == 3 * 4 + 1


def test_nested_order_begins_with_the_quad_tile() -> None:
    assert masks.pixel_order("nested", 2, 2).tolist() == [0, 3, 1, 2]
    assert masks.pixel_order("quad", 2, 2).tolist() == [0, 3, 1, 2]


@pytest.mark.parametrize("name", masks.TILES)
def test_a_tiles_own_steps_are_segments_of_its_order(name: str) -> None:
    steps = masks.tile_steps(name, 32, 32).ravel()
    assert (np.diff(steps[masks.pixel_order(name, 32, 32)]) >= 0).all()


@pytest.mark.parametrize(
    "name, counts",
    [
        ("normal", [1] * 16),
        ("uneven_1", [1, 1, 1, 1, 2, 2, 2, 2, 4, 4, 4, 4, 4, 8, 8, 16]),
        ("uneven_2", [1, 1, 1, 1, 2, 2, 4, 4, 4, 4, 4, 4, 8, 8, 8, 8]),
    ],
)
def test_given_sizes_reproduce_the_tiles_steps(name: str, counts: list[int]) -> None:
    tile = np.array(masks.TILES[name])
    assert np.bincount(tile.ravel())[1:].tolist() == counts
    order = masks.pixel_order(name, 32, 32)
    bounds = masks.step_bounds(1024, 16, counts)
    steps = masks.step_of_pixel(order, bounds).reshape(32, 32)
    assert np.array_equal(steps + 1, masks.tile_steps(name, 32, 32))


@pytest.mark.parametrize("sizes", masks.SIZES)
@pytest.mark.parametrize("pixels, steps", [(1, 1), (5, 5), (7, 3), (1024, 16), (1024, 1024)])
def test_partitions_cover_all_pixels_with_no_empty_step(
    sizes: str, pixels: int, steps: int
) -> None:
    bounds = masks.step_bounds(pixels, steps, sizes, exponent=2.2)
    assert bounds[0] == 0 and bounds[-1] == pixels and (np.diff(bounds) > 0).all()
    assert len(bounds) == steps + 1


def test_powers_are_rounded_alike_by_all_libraries() -> None:
    # 129,070,030.50000048…, rounded to 2^-20 first; numpy's with AVX-512 is below that.
    bounds = masks.step_bounds(12508 * 16677, 1368, "power", 1.5)
    assert bounds[1129] == 129_070_031


def test_equal_and_power_sizes() -> None:
    assert np.diff(masks.step_bounds(1024, 16)).tolist() == [64] * 16
    assert masks.step_bounds(1024, 4, "power", 1.0).tolist() == [0, 64, 256, 576, 1024]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((16, 17), "from 1 to the number of pixels, 16"),
        ((16, 0), "from 1"),
        ((16, 4, "planned"), "expected one of equal, power"),
        ((16, 4, "power", -1.0), "must not be negative"),
        ((16, 4, [1, 2]), "must be 4 numbers above 0"),
        ((16, 4, 4), "must be 4 numbers above 0"),
        ((16, 2, [1, float("inf")]), "must be 2 numbers above 0"),
        ((16, 4, "power", float("nan")), "must not be negative"),
        ((16, 2, [1, 0]), "must be 2 numbers above 0"),
    ],
)
def test_impossible_partitions_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        masks.step_bounds(*arguments)


def test_unknown_orders_and_empty_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown pixel order 'spiral'"):
        masks.pixel_order("spiral", 4, 4)
    with pytest.raises(ValueError, match="0×4"):
        masks.pixel_order("nested", 0, 4)

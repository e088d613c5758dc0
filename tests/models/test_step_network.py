"""Tiles and lattices of networks that process the whole image in every step."""

import numpy as np
import pytest

from italic.models import step_network
from italic.models.step_network import ALIGNED, HALO, TILE, Lattice, cut_into_tiles


@pytest.mark.parametrize("size", [(1, 1), (192, 5), (193, 400), (32, 1000), (577, 16)])
def test_tiles_share_out_the_picture(size: tuple[int, int]) -> None:
    height, width = size
    tiles, tile_of_pixel = cut_into_tiles(height, width)
    assert tile_of_pixel.shape == (height * width,) and set(tile_of_pixel) == set(range(len(tiles)))
    for number, tile in enumerate(tiles):
        y, x = np.divmod(np.flatnonzero(tile_of_pixel == number), width)
        assert max(0, y.min() - HALO) == tile.top and min(height, y.max() + 1 + HALO) == tile.bottom
        assert max(0, x.min() - HALO) == tile.left and min(width, x.max() + 1 + HALO) == tile.right
        assert y.max() - y.min() < TILE and x.max() - x.min() < TILE
        assert tile.top % ALIGNED == tile.left % ALIGNED == 0


def test_a_lattice_is_a_picture_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_network, "TILE", 4)
    monkeypatch.setattr(step_network, "ALIGNED", 2)
    picture = np.arange(19 * 25).reshape(19, 25)
    coarse = picture[::4, ::4]
    lattice = Lattice(19, 25, 4)
    assert np.array_equal(coarse.ravel()[lattice.place(coarse.ravel())], coarse.ravel())
    due = np.random.default_rng(0).permutation(coarse.ravel())[:20]
    shares = list(lattice.shares(due))
    assert len(shares) == 4 and sorted(np.concatenate([here for _, here in shares])) == sorted(due)
    for tile, here in shares:
        crop = coarse[tile.top : tile.bottom, tile.left : tile.right]
        assert np.array_equal(crop.ravel()[tile.place(lattice.place(here), lattice.width)], here)

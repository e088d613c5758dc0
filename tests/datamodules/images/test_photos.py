import numpy as np
import pytest

from italic.datamodules.images import Photos
from tests.datamodules.images.drawn import as_set


def test_photographs_of_the_splits_differ() -> None:
    source = Photos(32)
    splits = [source.load(split) for split in ("train", "validation", "test")]
    assert [len(images) for images in splits] == [9094, 260, 126]
    assert all(images.shape[1:] == (32, 32, 3) for images in splits)
    sets = [as_set(images) for images in splits]
    assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])
    assert np.array_equal(Photos(32).load("test"), splits[2])


def test_photographs_may_be_resized_first() -> None:
    # The cat's 300×451 pixels become 75×113: 2×3 tiles.
    assert Photos(32, scale=0.25).load("test").shape == (6, 32, 32, 3)
    assert len(
        Photos(32, scale=0.125).load("train")
    )  # some photographs at half size are smaller than a tile
    for size, scale in ((65, 0.25), (8, 0.01), (8, 2)):
        with pytest.raises(ValueError, match="must be from 1"):
            Photos(size, scale)

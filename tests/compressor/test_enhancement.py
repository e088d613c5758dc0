import numpy as np
import pytest
import torch
from torch import nn

from italic.coding.base_codes import bpg
from italic.coding.base_codes.base import NoBase
from italic.coding.exact import make_exact
from italic.coding.model_files.model import Model
from italic.coding.model_files.recipe import Recipe
from italic.coding.streams.codec import Codec
from italic.compressor.enhancement import enhance
from italic.models.rnan import RNAN
from italic.schedule import Schedule

NETWORK = {"features": 8, "groups": 1, "components": 2, "recurrent": False}


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)

    def calibrate(network: nn.Module) -> None:
        Codec(network, NoBase(), Schedule(), 2).encode(waves(16, 16)[None])

    network = make_exact(RNAN(**NETWORK).eval(), calibrate)
    base = {"qp": 40, "chroma": "420"}
    return Model("tiny", "0" * 64, Recipe(NETWORK, base, 2, "nested", "equal", 0.0), network)


def waves(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width][..., None]
    return (128 + 90 * np.sin(x / 4 + y / (3 + np.arange(3)))).astype(np.uint8)


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (33, 50)])
@pytest.mark.parametrize("chroma", ["420", "444"])
def test_pictures_of_any_size(model: Model, size: tuple[int, int], chroma: str) -> None:
    data = bpg.encode(waves(*size), 40, chroma)
    own = bpg.decode(data).astype(int)
    one, other, sample = (
        enhance(data, model, *more) for more in ((1,), (10**9 if size == (1, 1) else 7,), (1, True))
    )
    for picture in (one, other, sample):
        assert picture.shape == (*size, 3) and picture.dtype == np.uint8
    # The expectation of an untrained network is close to the base image.
    assert abs(one - own).mean() < 3
    assert np.array_equal(sample, enhance(data, model, 1, True))
    assert size == (1, 1) or abs(sample - own).mean() > abs(one - own).mean()


def test_the_average_with_the_mirrored_picture_is_the_same_both_ways(model: Model) -> None:
    (average,) = Codec(model.network, NoBase(), Schedule(), 1).expect([b""], 16, 24, mirrored=True)
    assert np.array_equal(average, average[:, ::-1])  # symmetric as the input, which is grey
    data = bpg.encode(waves(16, 24), 40)
    once, both = enhance(data, model), enhance(data, model, mirrored=True)
    assert both.dtype == np.uint8 and abs(both - once.astype(int)).mean() < 1
    with pytest.raises(ValueError, match="not both"):
        enhance(data, model, sample=True, mirrored=True)


def test_what_is_no_lossy_bpg_file_is_refused(model: Model) -> None:
    with pytest.raises(bpg.BPGError, match="not a BPG file"):
        enhance(b"no BPG", model)
    with pytest.raises(bpg.BPGError, match="lossless"):
        enhance(bpg.encode_lossless(waves(16, 16)), model)

"""Networks of the tests of exact inference, and ways to compute products."""

from collections.abc import Callable

import pytest
from torch import nn

from italic.coding.exact import calibrated, products
from italic.models.rnan import RNAN
from tests.coding.exact.grid_networks import OPTIONS, trained
from tests.coding.exact.int8_networks import Predictor, by, calibrate, randomised

WAYS = ("int8", "float32")


@pytest.fixture(scope="module")
def predictor() -> nn.Module:
    """An exact network in the scheme "int8"."""
    return calibrated(randomised(Predictor()), calibrate)


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """Functions that select each implementation that is exact on this machine."""
    right = WAYS if products._exact() else WAYS[1:]
    return [lambda way=way: by(monkeypatch, way) for way in right]


@pytest.fixture(scope="module", params=list(OPTIONS))
def network(request: pytest.FixtureRequest) -> tuple[str, RNAN]:
    """A name in `OPTIONS`, and its exact network in the scheme "grids"."""
    return request.param, trained(OPTIONS[request.param])

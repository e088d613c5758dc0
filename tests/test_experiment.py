"""A network that begins with the weights of a model."""

from typing import Any

import pytest
import torch

from italic.coding.model import Recipe, load_model, save_model
from italic.experiment import RunError, begin_with
from italic.models.rnan import RNAN
from tests.coding.test_exact import FULL, HOURGLASS, pictures, trained

FOUR_PIXELS = torch.arange(256).view(1, 1, 16, 16) % 64 == 0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("models") / "hourglass.safetensors"
    save_model(path, trained(HOURGLASS), Recipe(HOURGLASS, None, 4, "nested", "power", 1.0))
    return str(path)


@torch.no_grad()
def means(network: RNAN) -> torch.Tensor:
    image = torch.from_numpy(pictures(1)).permute(0, 3, 1, 2).float()
    mixture, _ = network(image, torch.full_like(image, 128), FOUR_PIXELS.float())
    return mixture.means


@pytest.mark.parametrize("more", [{}, {"deep": 3}, {"groups": 2}], ids=str)
def test_it_says_what_the_model_says_though_it_may_be_larger(
    model: str, more: dict[str, Any]
) -> None:
    network = RNAN(**{**HOURGLASS, **more})
    untrained = means(network)
    begin_with(network, model)
    expected = means(load_model(model).network)
    assert (means(network) - expected).abs().max() < 0.1  # grey levels; the exact one rounds
    assert (untrained - expected).abs().max() > 1


def test_groups_with_mask_branches_cannot_be_added() -> None:
    with pytest.raises(ValueError, match="mask branch"):
        RNAN(**FULL).groups[1].become_identity()


@pytest.mark.parametrize("other", [{"features": 24}, {"deep": 1}, {"recurrent": True}], ids=str)
def test_a_network_that_lacks_what_the_model_has_is_refused(
    model: str, other: dict[str, Any]
) -> None:
    settings = {**HOURGLASS, **other}
    if settings["recurrent"]:
        settings.update(deep=0, largest_stride=1)
    with pytest.raises(RunError, match="don't fit the network"):
        begin_with(RNAN(**settings), model)

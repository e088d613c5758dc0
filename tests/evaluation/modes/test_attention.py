from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from italic.coding.exact import exact_arithmetic
from italic.coding.exact.grid_attention import ExactNonLocalBlock
from italic.coding.model_files.model import Model
from italic.evaluation.modes.attention import Attention, attention_figure, attention_of, draw
from italic.evaluation.sources import Inputs
from italic.models.lattice import LatticeNetwork
from italic.models.layers import NonLocalBlock
from italic.run_directory import RunError

pytestmark = pytest.mark.slow

GATED = {"attention_window": 8}  # like rnan
HOURGLASS = {  # like rnan_small
    "attention_window": 16,
    "space_to_depth": 2,
    "mask_branch": False,
    "deep": 0,
    "largest_stride": 2,
    "recurrent": False,
}
PLAIN = {"attention_window": 32, "mask_branch": False, "recurrent": False}

MakeModel = Callable[..., Model]
MakeInputs = Callable[..., Inputs]


def random_block(exact: bool) -> NonLocalBlock:
    torch.manual_seed(0)
    block: NonLocalBlock = NonLocalBlock(8, 4).requires_grad_(False)
    if exact:
        block = ExactNonLocalBlock(block).requires_grad_(False)
        block.units.copy_(torch.tensor([2.0**-7, 2.0**-7, 2.0**-7]))
    return block


@pytest.mark.parametrize("exact", [False, True])
def test_weights_are_those_that_values_are_attended_with(exact: bool) -> None:
    block = random_block(exact)
    query, key, value = torch.randn(3, 2, 16, 4)
    with exact_arithmetic():
        weights = block.weights(query, key)
        attended = block.attend(query, key, value)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 16), atol=1e-6)
    assert torch.allclose(weights @ value, attended, atol=2.0**-7)
    softmax = (query @ key.transpose(1, 2) / 2).softmax(-1)
    assert torch.allclose(weights, softmax, atol=0.02 if exact else 1e-6)


@pytest.mark.parametrize("exact", [False, True])
def test_a_position_looks_within_its_window(exact: bool) -> None:
    block = random_block(exact)
    x = torch.randn(2, 8, 6, 4)  # two windows of 3×4 positions
    for row, inside in ((0, slice(0, 3)), (2, slice(0, 3)), (3, slice(3, 6)), (5, slice(3, 6))):
        weights = block.weights_of(x, row, 1)
        assert weights.shape == (2, 6, 4)
        assert torch.allclose(weights[:, inside].sum((1, 2)), torch.ones(2), atol=1e-6)
        assert torch.allclose(weights.sum((1, 2)), torch.ones(2), atol=1e-6)
        other = x.clone()
        other[:, :, inside] = 0
        assert not torch.equal(block.weights_of(other, row, 1), weights)
        x_elsewhere = torch.randn_like(x)
        x_elsewhere[:, :, inside] = x[:, :, inside]
        assert torch.allclose(block.weights_of(x_elsewhere, row, 1), weights, atol=1e-6)


@pytest.mark.parametrize(
    ("network", "step", "side", "positions"),
    [
        (GATED, 3, 1, (12, 16)),
        (HOURGLASS, 1, 8, (2, 2)),  # on the lattice of every second pixel
        (HOURGLASS, 3, 4, (3, 4)),
        (PLAIN, 3, 1, (12, 16)),
    ],
)
def test_attention_of_a_pixel_covers_the_image_and_sums_to_1(
    network: dict[str, Any],
    step: int,
    side: int,
    positions: tuple[int, int],
    make_model: MakeModel,
    images: np.ndarray,
) -> None:
    looks = attention_of(make_model(**network).codec(4), images, (11, 15), step)
    assert list(looks) == ["group 1", "group 2"]
    for look in looks.values():
        assert look.side == side and look.weights.shape == (3, *positions)
        assert look.weights.sum((1, 2)) == pytest.approx(np.ones(3), abs=1e-5)
        assert look.over(12, 16).shape == (3, 12, 16)
        assert np.ptp(look.weights) > 0


def test_attention_sees_nothing_of_pixels_that_are_not_known(
    make_model: MakeModel, images: np.ndarray
) -> None:
    codec = make_model(**GATED).codec(4)
    known = (codec.partition(12, 16).step_of_pixel < 2)[..., None]
    for step, same in ((2, True), (3, False)):
        first, second = (
            attention_of(codec, seen, (5, 5), step)["group 1"].weights
            for seen in (images, np.where(known, images, 255 - images))
        )
        assert np.array_equal(first, second) == same


def test_contexts_of_the_lattice_estimator_attend(
    make_model: MakeModel, images: np.ndarray
) -> None:
    torch.manual_seed(0)
    network = LatticeNetwork(8, 1, 3, 2, context_features=8, context_blocks=2, attention_window=4)
    for parameter in network.parameters():
        parameter.data.normal_(0, 0.1)
    codec = make_model(**GATED).codec(6)
    codec.network = network.eval()
    assert attention_of(codec, images, (5, 5), 0) == {}
    (last,) = attention_of(codec, images, (5, 5), 5).values()
    assert last.side == 2 and last.weights.shape == (len(images), 6, 8)
    assert last.weights.sum((1, 2)) == pytest.approx(1, abs=1e-5)


def test_positions_are_repeated_over_their_pixels() -> None:
    weights = np.arange(4, dtype=np.float32).reshape(1, 2, 2)
    assert Attention(weights, 2).over(3, 4).tolist() == [[[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3]]]


@pytest.mark.parametrize("network", [GATED, HOURGLASS, PLAIN])
def test_the_figure_is_drawn(
    network: dict[str, Any], make_model: MakeModel, make_inputs: MakeInputs
) -> None:
    inputs = make_inputs(
        make_model(**network), [1, 4], pictures=2, attention={"pixel": [3, 4], "step": 2}
    )
    draw(inputs)
    with Image.open(inputs.output / "attention.png") as picture:
        assert picture.width > 600


@pytest.mark.parametrize(
    "count, height, width, blocks", [(1, 32, 32, 1), (1, 32, 32, 3), (2, 32, 32, 1), (3, 12, 16, 2)]
)
def test_nothing_in_the_figure_is_cut_off(count: int, height: int, width: int, blocks: int) -> None:
    grey = np.full((count, height, width, 3), 128, np.uint8)
    attention = Attention(np.full((count, height // 2, width // 2), 1e-3, np.float32), 2)
    blocks_of = {f"group {number}": attention for number in range(blocks)}
    figure = attention_figure(grey, grey, blocks_of, (3, 4), "a title")
    figure.savefig(io.BytesIO())
    drawn, (wide, tall) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(drawn.x0, drawn.y0, wide - drawn.x1, tall - drawn.y1) > 0
    (title,) = (text for text in figure.texts if text.get_text() == "a title")
    headings = [axes.title.get_window_extent() for axes in figure.axes]
    assert max(heading.y1 for heading in headings) < title.get_window_extent().y0


def test_an_estimator_of_ones_own_is_refused(
    make_model: MakeModel, make_inputs: MakeInputs
) -> None:
    own = replace(make_model(), network=nn.ModuleDict({"look": random_block(exact=True)}))
    with pytest.raises(RunError, match="ITALIC's own estimators"):
        draw(make_inputs(own))


@pytest.mark.parametrize(
    ("network", "settings", "said"),
    [
        ({"attention": False}, {}, "no non-local blocks"),
        (GATED, {"attention": {"pixel": [12, 0]}}, "y from 0 to 11"),
        (GATED, {"attention": {"pixel": [1, 2, 3]}}, r"evaluate.attention.pixel=\[y,x\]"),
        (GATED, {"attention": {"step": 5}}, "from 1 to 4"),
        (GATED, {"attention": {"step": 0}}, "from 1 to 4"),
        (GATED, {"pictures": 0}, "evaluate.pictures above 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    network: dict[str, Any],
    settings: dict[str, Any],
    said: str,
    make_model: MakeModel,
    make_inputs: MakeInputs,
) -> None:
    inputs = make_inputs(make_model(**network), **settings)
    with pytest.raises(RunError, match=said):
        draw(inputs)
    assert not list(inputs.output.iterdir())

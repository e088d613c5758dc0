"""`numpy_decoder`, written from docs/format.md, decodes the lattice estimator's streams."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from italic.coding.exact import calibrated, exact_arithmetic
from italic.coding.model_files.loading import load_model
from italic.coding.model_files.model import save_model
from italic.coding.model_files.recipe import Recipe
from italic.coding.streams.codec import Codec
from italic.models.lattice import LatticeNetwork
from italic.models.network import Network
from italic.schedule import Schedule
from tests.coding.streams.numpy_decoder import Decoder, Estimator, context_steps, cuts, strides

SMALL = {"kind": "lattice", "features": 12, "blocks": 2, "window": 5, "components": 3}
CONTEXT = {"context_features": 8, "context_blocks": 1, "attention_window": 4}
RECIPES = {
    "no base code": Recipe(
        # Attention in truncated windows, between two residual blocks.
        SMALL | {"context_features": 9, "context_blocks": 2, "attention_window": 3, "leak": 0.25},
        base=None,
        steps=4,
        order="nested",
        sizes="power",
        exponent=1.3,
    ),
    "one rung, no attention": Recipe(
        SMALL | CONTEXT | {"attention_window": 0, "rungs": 1},
        base={"qp": 40, "chroma": "420"},
        steps=4,
        order="nested",
        sizes="planned",
        exponent=2.0,
        plans={"6": [1, 3, 12, 25, 70, 110]},
    ),
    "two rungs": Recipe(
        SMALL | CONTEXT | {"rungs": 2},
        base={"qps": [40, 49]},
        steps=4,
        order="nested",
        sizes="equal",
        exponent=1.0,
    ),
    "no context": Recipe(
        SMALL | {"context_features": 0, "window": 3, "rungs": 2},
        base={"qps": [40, None]},
        steps=4,
        order="nested",
        sizes=[1, 2.5, 4, 8.5, 16, 32],
        exponent=1.0,
    ),
}
CODED = [(1, 1, 1), (8, 8, 40), (3, 20, 1), (13, 17, 6)]  # height, width, steps


class Given:
    """A base code without bytes and with a given image."""

    identity = "given"

    def __init__(self, picture: np.ndarray) -> None:
        self.picture = picture

    def encode(self, image: np.ndarray) -> bytes:
        return b""

    def decode(self, data: bytes, height: int, width: int) -> np.ndarray:
        return self.picture


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """A slope in each colour, with noise and clipped parts, uint8 (H, W, 3)."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width][..., None]
    slopes = random.normal(0, 12, (2, 3))
    levels = 128 + slopes[0] * (y - height / 2) + slopes[1] * (x - width / 2)
    return np.clip(levels + random.normal(0, 20, levels.shape), 0, 255).astype(np.uint8)


def base_of(image: np.ndarray) -> np.ndarray:
    return (image // 32 * 32 + 16).astype(np.uint8)


def exact_network(recipe: Recipe) -> Network:
    """Random values without zeros."""
    torch.manual_seed(1)
    settings = {key: value for key, value in recipe.network.items() if key != "kind"}
    network = LatticeNetwork(**settings).eval()
    for parameter in network.parameters():
        parameter.data.normal_(0, 0.2)

    def calibrate(untouched: LatticeNetwork) -> None:
        for seed, rung in enumerate(range(max(1, network.rungs))):
            image = picture(16, 18, seed)
            Codec(untouched, Given(base_of(image)), Schedule(), 6, rung).encode(image[None])

    return calibrated(network, calibrate)


@pytest.fixture(scope="module", params=list(RECIPES))
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    save_model(path, exact_network(RECIPES[request.param]), RECIPES[request.param])
    return path


@pytest.mark.parametrize("order", ["nested", "raster"])
def test_it_decodes_what_italic_encodes(saved: Path, tmp_path: Path, order: str) -> None:
    model, path = load_model(saved), tmp_path / "ordered.safetensors"
    save_model(path, model.network, replace(model.recipe, order=order))
    model, decoder = load_model(path), Decoder(path)
    for seed, (height, width, steps) in enumerate(CODED):
        image, rung = picture(height, width, seed), seed % len(model.bases)
        base = base_of(image)
        codec = Codec(model.network, Given(base), model.recipe.schedule, steps, rung)
        (coded,) = codec.encode(image[None])
        decoded = decoder.decode(coded.stream, height, width, steps, base, rung)
        np.testing.assert_array_equal(decoded, image)


def test_the_models_have_several_zero_points(saved: Path) -> None:
    tensors = Decoder(saved).tensors
    zeros = {int(tensor) for name, tensor in tensors.items() if name.endswith(".zero")}
    assert len(zeros) >= 4


def test_the_streams_have_contexts_and_cut_windows() -> None:
    partition = Schedule().partition(13, 17, 6)
    pairs = set(zip(partition.strides.flat, partition.context_steps.flat, strict=True))
    assert {stride for stride, step in pairs if step >= 0} == {1, 2}
    assert {stride for stride, step in pairs if step < 0} >= {4, 8, 64}
    assert [len(range(7)[part]) for part in cuts(7, 3)] == [3, 2, 2]


@pytest.mark.parametrize("order", ["nested", "raster", "uneven_1"])
@pytest.mark.parametrize("size", [(1, 1), (33, 20), (70, 140)])
def test_strides_and_steps_of_contexts_are_as_described(order: str, size: tuple[int, int]) -> None:
    for steps in {min(steps, size[0] * size[1]) for steps in (1, 5, 60)}:
        partition = Schedule(order).partition(*size, steps)
        step_of = partition.step_of_pixel.astype(np.int64)
        np.testing.assert_array_equal(strides(step_of), partition.strides)
        described = context_steps(step_of, partition.strides)
        np.testing.assert_array_equal(described, partition.context_steps)


class Recorded(Estimator):
    """Records the inputs of layers by the name of the layer or residual block."""

    inputs: dict[str, list[np.ndarray]]

    def quantised(self, name: str, x: np.ndarray) -> np.ndarray:
        if not name.endswith(".second"):
            self.inputs[name.removesuffix(".first")].append(x)
        return super().quantised(name, x)


@torch.inference_mode()
def test_the_inputs_of_all_layers_are_the_same_bit_for_bit(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoded pixels alone would reveal differences only if a rounding changes them."""
    for module in ("tests.coding.streams.numpy_decoder", "italic.models.lattice"):
        monkeypatch.setattr(f"{module}.TILE", 5)  # contexts are cut into tiles
    model, decoder = load_model(saved), Decoder(saved)
    partition, image = model.recipe.schedule.partition(13, 17, 6), picture(13, 17, 5)
    base, rung = base_of(image), len(model.bases) - 1
    network = model.network
    assert isinstance(network, LatticeNetwork)
    expected: dict[str, list[np.ndarray]] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor]) -> None:
            (x,) = inputs[0].numpy()
            expected.setdefault(name, []).extend([x] if x.ndim == 3 else x)

        return hook

    modules = dict(network.named_modules())
    with exact_arithmetic():
        estimator = Recorded(
            decoder.tensors,
            decoder.settings,
            partition.step_of_pixel.astype(np.int64),
            base.astype(np.int64),
            rung,
        )
        estimator.inputs = defaultdict(list)
        places = [divmod(int(pixel), partition.width) for pixel in partition.order]
        numbers = [estimator.numbers(image.astype(np.int64), y, x)[0] for y, x in places]
        hooks = [modules[name].register_forward_pre_hook(keep(name)) for name in estimator.inputs]
        given, beside = (torch.from_numpy(x)[None] for x in (image, base))
        raw, _ = network.raw(given, beside, partition, partition.order, rung)
        for hook in hooks:
            hook.remove()
    np.testing.assert_array_equal(np.stack(numbers), raw[0].numpy())
    assert expected.keys() == estimator.inputs.keys()
    for name, rows in expected.items():
        # The order of contexts differs, and zeros may have either sign.
        both = estimator.inputs[name], rows
        found, due = (sorted((x + np.float32(0)).tobytes() for x in some) for some in both)
        assert found == due, name

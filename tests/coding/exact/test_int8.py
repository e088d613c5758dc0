"""Exact networks on 8-bit operands."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from decimal import Context, Decimal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from italic.coding.exact import (
    InexactError,
    calibrated,
    check,
    check_layers,
    exact_arithmetic,
    exchange_modules,
    floating_state,
    grid_attention,
    int8_attention,
    integer_state,
    kernels,
    layers,
    load_integer_state,
    make_exact,
    products,
)
from italic.coding.exact.int8_attention import QuantisedNonLocalBlock
from italic.coding.exact.int8_convolutions import QuantisedConv2d, QuantisedConvTranspose2d
from italic.coding.exact.int8_layers import (
    QuantisedFineLinear,
    QuantisedIntegerLinear,
    QuantisedLayer,
    QuantisedLinear,
    QuantisedResidualBlock,
)
from italic.coding.exact.int8_network import is_residual_block
from italic.models.layers import FineLinear, IntegerLinear, NonLocalBlock, ResidualBlock, conv3x3

LEAK = 0.0625
WAYS = ("int8", "float32")


class Rows(nn.Module):
    """A residual block of two linear layers."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.leak = LEAK
        self.first = nn.Linear(features, features)
        self.second = nn.Linear(features, features)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.leaky_relu(self.first(x), self.leak))


class Predictor(nn.Module):
    """A small network with the structure of the pixel predictor and the context network."""

    arithmetic = "int8"

    def __init__(self, features: int = 32, inputs: int = 75) -> None:
        super().__init__()
        self.context = nn.Sequential(
            *(conv3x3(4, features), ResidualBlock(features, LEAK), NonLocalBlock(features, 4)),
            *(conv3x3(features, features, stride=2), nn.Conv2d(features, features, 1)),
        )
        self.up = nn.ConvTranspose2d(features, features, 2, stride=2)
        self.entry = nn.Linear(inputs, features)
        self.known_entry = nn.Linear(inputs, features, bias=False)
        self.embedding = nn.Embedding(4, features)
        self.body = nn.Sequential(*(Rows(features) for _ in range(2)))
        self.exit = FineLinear(features, 12)

    def forward(self, lattice: Tensor, rows: Tensor, known: Tensor) -> Tensor:
        context = self.up(self.context(lattice)).permute(0, 2, 3, 1).flatten(0, 2)
        x = self.entry(rows * (1 / 16)) + self.known_entry(known) + self.embedding.weight[1]
        return self.exit(self.body(x + context[: len(x)]))


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """Weights similar to trained ones."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            size = 0.8 / max(1.0, parameter[0].numel() ** 0.5) if parameter.ndim > 1 else 0.1
            values = torch.randn(parameter.shape, generator=random) * size
            parameter.copy_(values.sign() * values.abs().pow(1.3) * 1.5)
    return network.eval()


def inputs(seed: int = 0, count: int = 200) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    integers = torch.randint(-127, 128, (2, 4, 12, 10), generator=random)
    lattice = integers.float() / 64
    rows = torch.randn(count, 75, generator=random).mul(25).round().clamp(-127, 127)
    known = (torch.rand(count, 75, generator=random) < 0.4).float()
    return lattice, rows, known


def calibrate(network: nn.Module) -> None:
    for seed in range(4):
        network(*inputs(seed))


@pytest.fixture(scope="module")
def predictor() -> nn.Module:
    return calibrated(randomised(Predictor()), calibrate)


def by(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr(products, "use_int8", lambda: way == "int8")


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """Functions that select each implementation that is exact on this machine."""
    right = WAYS if products._exact() else WAYS[1:]
    return [lambda way=way: by(monkeypatch, way) for way in right]


def random_layer(layer: nn.Module, zero: int, seed: int = 0) -> QuantisedLayer:
    """A quantised layer with random weights, including the extreme values."""
    kinds = {
        nn.Linear: QuantisedLinear,
        FineLinear: QuantisedFineLinear,
        nn.Conv2d: QuantisedConv2d,
        nn.ConvTranspose2d: QuantisedConvTranspose2d,
    }
    made = kinds[type(layer)](layer)
    random = torch.Generator().manual_seed(seed)
    made.weight.copy_(torch.randint(-127, 128, made.weight.shape, generator=random))
    made.bias.copy_(torch.randint(-(2**16), 2**16, made.bias.shape, generator=random))
    made.scale.copy_(torch.rand(made.scale.shape, generator=random) * 1e-4 + 1e-6)
    made.steps.copy_(torch.rand(made.steps.shape, generator=random) * 40)
    made.zero.fill_(zero)
    assert made.is_exact()
    return made


def reference(layer: QuantisedLayer, x: Tensor, conv: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The layer by its definition in float64, which holds the sums exactly."""
    zero = int(layer.zero)
    steps = layer.steps if isinstance(layer, QuantisedLinear) else layer.steps.view(-1, 1, 1)
    counts = (x * steps).round().clamp(-zero, 255 - zero).double()
    # The bias without the term of the zero point.
    bias = (layer.bias - layer.zero_bias()).double()
    shape = (-1,) if isinstance(layer, QuantisedLinear) else (-1, 1, 1)
    sums = conv(counts, layer.weight.double()) + bias.view(shape)
    return sums.float() * layer.scale.view(shape)


@pytest.mark.parametrize("zero", [0, 17, 128, 255])
@pytest.mark.parametrize("rows", [0, 1, 7, 64, 2100])
@pytest.mark.parametrize("widths", [(3, 5), (75, 32), (243, 96)])
def test_linear_layers(
    ways: list[Callable[[], None]], widths: tuple[int, int], rows: int, zero: int
) -> None:
    layer = random_layer(nn.Linear(*widths), zero)
    x = torch.randn(rows, widths[0], generator=torch.Generator().manual_seed(1)) * 4
    expected = reference(layer, x, F.linear)
    for choose in ways:
        choose()
        assert torch.equal(layer(x), expected)
        assert torch.equal(layer(x[None]), expected[None])
        assert torch.equal(layer(layer.quantise_input(x)), expected)


@pytest.mark.parametrize("rows", [0, 1, 64, 2100])
@pytest.mark.parametrize("size", [1e-3, 4, 1e6])
def test_fine_layers_have_inputs_of_16_bits(
    ways: list[Callable[[], None]], rows: int, size: float
) -> None:
    layer = random_layer(FineLinear(75, 32), 128)
    x = torch.randn(rows, 75, generator=torch.Generator().manual_seed(1)) * size
    levels = (x * layer.steps).clamp(-32639, 32639).round().double()
    # float64 holds the sum exactly; it is rounded once to float32.
    sums = F.linear(levels, layer.weight.double()) + layer.bias
    for choose in ways:
        choose()
        assert torch.equal(layer(x), sums.float() * layer.scale)
        assert torch.equal(layer(x[None]), layer(x)[None])


@pytest.mark.parametrize("rows", [0, 1, 64, 2100])
def test_layers_of_integers_have_weights_of_16_bits(
    ways: list[Callable[[], None]], rows: int
) -> None:
    layer = QuantisedIntegerLinear(IntegerLinear(246, 32, 1 / 16))
    random = torch.Generator().manual_seed(0)
    layer.weight.copy_(torch.randint(-32639, 32640, (32, 246), generator=random))
    layer.bias.copy_(torch.randint(-(2**20), 2**20, (32,), generator=random))
    layer.scale.copy_(torch.rand(32, generator=random) * 1e-6 + 1e-9)
    assert layer.is_exact()
    x = torch.randint(-128, 128, (rows, 246), generator=random).to(torch.int8)
    sums = F.linear(x.double(), layer.weight.double()) + layer.bias
    for choose in ways:
        choose()
        assert torch.equal(layer(x), sums.float() * layer.scale)
    layer.bias[3] = 2**24 - 1
    assert not layer.is_exact()


@pytest.mark.parametrize("zero", [0, 100, 255])
@pytest.mark.parametrize("stride", [1, 2, (2, 1)])
@pytest.mark.parametrize(("kernel", "padding"), [(1, 0), (3, 1), ((3, 2), (0, 1)), (3, 2)])
@pytest.mark.parametrize(
    "shape", [(1, 5, 4, 3), (3, 8, 17, 40), (1, 4, 9, 700), (1, 12, 33, 1), (1, 12, 40, 2)]
)
def test_convolutions(
    ways: list[Callable[[], None]],
    shape: tuple[int, ...],
    kernel: object,
    padding: object,
    stride: object,
    zero: int,
) -> None:
    conv = nn.Conv2d(shape[1], 6, kernel, stride, padding)  # type: ignore[arg-type]
    layer = random_layer(conv, zero)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 4
    expected = reference(layer, x, lambda x, w: F.conv2d(x, w, None, conv.stride, conv.padding))  # type: ignore[arg-type]
    for choose in ways:
        choose()
        assert torch.equal(layer(x), expected)
        assert torch.equal(layer(x.to(memory_format=torch.channels_last)), expected)


def test_products_of_rows_that_overlap_in_memory(ways: list[Callable[[], None]]) -> None:
    random = torch.Generator().manual_seed(0)
    memory = torch.randint(-128, 128, (27 * 12,), generator=random).to(torch.int8)
    rows = memory.as_strided((25, 36), (12, 1))  # the patches of 3×3 pixels of one column
    weight = torch.randint(-127, 128, (64, 36), generator=random).to(torch.int8)
    for choose in ways:
        choose()
        assert (products.product(rows, weight) == rows.long() @ weight.long().t()).all()


def test_transposed_convolutions(ways: list[Callable[[], None]]) -> None:
    layer = random_layer(nn.ConvTranspose2d(5, 6, (2, 3), (2, 3)), 128)
    x = torch.randn(2, 5, 7, 4, generator=torch.Generator().manual_seed(1)) * 4
    expected = reference(layer, x, lambda x, w: F.conv_transpose2d(x, w, None, (2, 3)))
    for choose in ways:
        choose()
        assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("kind", [Rows, lambda features: ResidualBlock(features, LEAK)])
def test_residual_blocks_do_what_their_layers_do(
    ways: list[Callable[[], None]], kind: Callable[[int], nn.Module]
) -> None:
    block = QuantisedResidualBlock(kind(32))
    block.first = random_layer(block.first, 120, 1)
    block.second = random_layer(block.second, 11, 2)
    shape = (1500, 32) if isinstance(block.first, QuantisedLinear) else (2, 32, 9, 30)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    expected = x + block.second(F.leaky_relu(block.first(x), LEAK))
    for choose in ways:
        choose()
        assert torch.equal(block(x), expected)


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32])
@pytest.mark.parametrize("zero", [0, 1, 97, 128, 255])
def test_compiled_passes_do_what_pytorch_does(dtype: torch.dtype, zero: int) -> None:
    random = torch.Generator().manual_seed(zero)
    sums = torch.randint(-(2**23), 2**23, (333, 50), generator=random).to(dtype)
    bias = torch.randint(-(2**22), 2**22, (50,), generator=random, dtype=torch.int32)
    scale = torch.rand(50, generator=random) * 1e-5
    x = torch.randn(333, 50, generator=random) * 3
    steps = torch.rand(50, generator=random) * 15
    zero_point = torch.tensor(zero, dtype=torch.int32)
    assert torch.equal(
        kernels.quantise(x, steps, zero_point), kernels.quantise_reference(x, steps, zero_point)
    )
    counts = torch.empty(333, 50, dtype=torch.int8)
    kernels.requantise(sums, bias, scale, LEAK, steps, zero_point, counts)
    again = kernels.requantise_reference(sums, bias, scale, LEAK, steps, zero_point)
    assert torch.equal(counts, again)
    for half, again in zip(
        kernels.quantise_fine(x * 1e3, steps),
        kernels.quantise_fine_reference(x * 1e3, steps),
        strict=True,
    ):
        assert torch.equal(half, again)
    out = torch.empty_like(x)
    low = sums.flip(0)
    kernels.rescale_fine(sums, low, bias, scale, out)
    assert torch.equal(out, kernels.rescale_fine_reference(sums, low, bias, scale))
    for before in (None, x):
        kernels.rescale(sums, bias, scale, out, before)
        assert torch.equal(out, kernels.rescale_reference(sums, bias, scale, before))


def test_halves_are_rounded_to_even() -> None:
    x = (torch.arange(-200, 200) / 2)[:, None]
    zero = torch.tensor(128, dtype=torch.int32)
    counts = kernels.quantise(x, torch.ones(1), zero)
    assert torch.equal(counts.float(), x.round().clamp(-128, 127))


def test_halves_of_16_bits_are_int8() -> None:
    x = torch.tensor([0, 1, -1, 127, 128, -128, -129, 32639, 32640, -1e30, 1e30])[:, None]
    high, low = kernels.quantise_fine(x, torch.ones(1))
    levels = 256 * high.int() + low.int()
    assert torch.equal(levels, x.clamp(-32639, 32639).int())


def test_products_are_not_fused_with_sums() -> None:
    # 4097² needs 25 bits: rounded to 2^24 + 8192 before 1 is added, but not if fused.
    sums = torch.full((64, 48), 4097, dtype=torch.int32)
    bias = torch.zeros(48, dtype=torch.int32)
    scale, x = torch.full((48,), 4097.0), torch.full((64, 48), -16777216.0)
    out = torch.empty_like(x)
    kernels.rescale(sums, bias, scale, out, x)
    assert (out == 8192).all()


def test_largest_inputs_stay_exact(ways: list[Callable[[], None]]) -> None:
    """The worst case that the bound allows, every input at its limit with its weight's sign."""
    layer = QuantisedLinear(nn.Linear(1030, 3))
    layer.weight.copy_(torch.tensor([127, -127, 0])[:, None].expand(3, 1030))
    room = 2**24 - 1 - 128 * 127 * 1030
    layer.bias.copy_(torch.tensor([-room, room, 2**24 - 1]))
    assert layer.is_exact() and int(layer.accumulator_bound().max()) == 2**24 - 1
    for choose in ways:
        choose()
        sums = layer(torch.full((2, 1030), -128, dtype=torch.int8))
        assert sums[1].tolist() == [1 - 2**24, 2**24 - 1, 2**24 - 1]


def test_ways_batches_threads_and_layouts_agree(
    predictor: nn.Module, ways: list[Callable[[], None]]
) -> None:
    lattice, rows, known = inputs(9)
    expected = predictor(lattice, rows, known)
    before = torch.get_num_threads()
    try:
        for choose in ways:
            choose()
            for threads in (1, 2):
                torch.set_num_threads(threads)
                assert torch.equal(predictor(lattice, rows, known), expected)
                some = lattice.to(memory_format=torch.channels_last), rows[:13], known[:13]
                assert torch.equal(predictor(*some), expected[:13])
    finally:
        torch.set_num_threads(before)


def test_lower_precision_changes_nothing(
    predictor: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = predictor(*inputs(9))
    by(monkeypatch, "float32")
    with torch.autocast("cpu", torch.bfloat16), exact_arithmetic():
        assert torch.equal(predictor(*inputs(9)), expected)
    before = torch.backends.mkldnn.matmul.fp32_precision
    try:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        assert torch.equal(predictor(*inputs(9)), expected)
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


@pytest.mark.parametrize(
    "settings",
    [
        {"ONEDNN_MAX_CPU_ISA": "AVX2"},
        {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
        {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"},
        {"ONEDNN_DEFAULT_FPMATH_MODE": "BF16"},
        {"ITALIC_PRODUCTS": "float32"},
    ],
    ids=lambda settings: "-".join(settings.values()),
)
@pytest.mark.slow
def test_every_instruction_set_computes_the_same(
    settings: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = calibrated(randomised(Predictor()), calibrate)
    state = tmp_path / "state.pt"
    torch.save(integer_state(network), state)
    expected = network(*inputs(9))
    np.save(tmp_path / "expected.npy", expected.numpy())
    code = (
        "import sys, numpy as np, torch;"
        "from tests.coding.exact import test_int8 as t;"
        "network = t.exchange_modules(t.Predictor());"
        f"t.load_integer_state(network, torch.load({str(state)!r}));"
        "out = network(*t.inputs(9)).numpy();"
        f"same = np.array_equal(out, np.load({str(tmp_path / 'expected.npy')!r}));"
        "print(t.products.use_int8(), same)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "OMP_NUM_THREADS": "1", **settings},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    way, same = done.stdout.split()
    assert same == "True"
    if "AVX2" in settings.values() or "float32" in settings.values():
        assert way == "False"


def test_the_probe_finds_saturation(monkeypatch: pytest.MonkeyPatch) -> None:
    def saturating(rows: Tensor, weight: Tensor) -> Tensor:
        pairs = (rows[:, None].int() + 128) * weight.int()  # as unsigned, as oneDNN does
        pairs = F.pad(pairs, (0, pairs.shape[-1] % 2)).unflatten(-1, (-1, 2)).sum(-1)
        return pairs.clamp(-(2**15), 2**15 - 1).sum(-1).int() - 128 * weight.int().sum(1)

    def absent(rows: Tensor, weight: Tensor) -> Tensor:
        raise RuntimeError("not implemented")

    for way in (saturating, absent):
        monkeypatch.setattr(products, "int8_product", way)
        assert not products._exact()


def test_unknown_ways_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ITALIC_PRODUCTS", "int4")
    with pytest.raises(ValueError, match="expected int8 or float32"):
        products.use_int8.__wrapped__()


def test_attention_is_near_and_its_sums_exact() -> None:
    block = NonLocalBlock(16, 16)
    torch.manual_seed(0)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    network = nn.Sequential(block)
    network.arithmetic = "int8"
    x = torch.randn(2, 16, 16, 16)
    exact = calibrated(network, lambda network: [network(x)].clear())
    attention = exact[0]
    assert isinstance(attention, QuantisedNonLocalBlock)
    query, key, value = (torch.randn(3, 256, 8) for _ in range(3))
    share = attention._integer_weights(query, key)
    assert torch.equal(share, share.round()) and share.max() == 255 and share.min() >= 0
    counts = (value * attention.steps[2]).round().clamp(-127, 127)
    sums = (share.double() @ counts.double()).float() * attention.value_scale
    assert torch.equal(attention.attend(query, key, value), sums / share.sum(-1, keepdim=True))
    error = (exact(x) - network(x)).square().mean() / (network(x) - x).square().mean()
    assert float(error) < 2e-3


def test_attention_over_large_windows_is_refused() -> None:
    network = nn.Sequential(NonLocalBlock(16, 23))
    network.arithmetic = "int8"
    with pytest.raises(InexactError, match="expected at most 22"):
        exchange_modules(network)


def test_inputs_of_8_bits_stay_as_they_are(predictor: nn.Module) -> None:
    assert (predictor.entry.steps == 16).all() and int(predictor.entry.zero) == 128
    assert (predictor.known_entry.steps == 1).all()
    assert (predictor.context[0].steps == 64).all()


def test_a_channel_of_large_values_does_not_coarsen_the_others() -> None:
    """With one scale for all channels, the small ones would be rounded to a few levels."""
    random = torch.Generator().manual_seed(0)
    sizes = torch.ones(32)
    sizes[5] = 300.0
    x = torch.randn(500, 32, generator=random) * sizes
    network = nn.Sequential(nn.Linear(32, 16))
    network.arithmetic = "int8"
    with torch.no_grad():
        network[0].weight.div_(sizes)
    exact = calibrated(network, lambda module: module(x))
    error = (exact(x) - network(x)).square().mean() / network(x).var()
    assert error < 0.02


def test_leaky_activations_get_nearly_all_levels(predictor: nn.Module) -> None:
    for block in predictor.body:
        assert 3 <= int(block.second.zero) <= 40


@torch.no_grad()
def test_calibration_errs_little(predictor: nn.Module) -> None:
    network = randomised(Predictor())
    expected = network(*inputs(9))
    size = expected.var()
    for exact in (predictor, make_exact(network, calibrate)):
        assert (exact(*inputs(9)) - expected).square().mean() < 3e-3 * size


def test_states_are_written_and_read_again(predictor: nn.Module) -> None:
    state = integer_state(predictor)
    kinds = {state[f"{name}.weight"].dtype for name in ("entry", "up", "context.0", "body.1.first")}
    assert kinds == {torch.int8}
    again = exchange_modules(Predictor())
    load_integer_state(again, state)
    check(again)
    assert torch.equal(again(*inputs(9)), predictor(*inputs(9)))


def test_floating_states_make_the_network_again(predictor: nn.Module) -> None:
    network = Predictor()
    network.load_state_dict(floating_state(predictor))
    expected = randomised(Predictor())(*inputs(9))
    assert (network(*inputs(9)) - expected).square().mean() < 3e-3 * expected.var()


DAMAGES: list[Callable[[nn.Module], object]] = [
    lambda network: network.entry.bias.fill_(2**24),
    lambda network: network.entry.scale.fill_(torch.nan),
    lambda network: network.entry.scale.fill_(0),
    lambda network: network.entry.steps.fill_(torch.inf),
    lambda network: network.entry.zero.fill_(256),
    lambda network: network.entry.weight.fill_(-128),
    lambda network: network.context[2].exponential.mul_(1.5),
    lambda network: network.context[2].score_scale.fill_(-1),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found(predictor: nn.Module, damage: Callable[[nn.Module], object]) -> None:
    network = copy.deepcopy(predictor)
    check(network)
    damage(network)
    with pytest.raises(InexactError, match="damaged"):
        check(network)


class OwnLinear(nn.Linear):
    """A user-defined layer."""


@pytest.mark.parametrize("layer", [OwnLinear(12, 12), nn.LayerNorm(12), nn.Bilinear(2, 2, 2)])
def test_layers_that_are_not_exact_are_refused(layer: nn.Module) -> None:
    network = Predictor()
    network.exit = nn.Sequential(network.exit, layer)
    with pytest.raises(InexactError, match=r"exit\.1"):
        check_layers(network)
    with pytest.raises(InexactError, match=r"exit\.1"):
        check(exchange_modules(network))


def test_unknown_schemes_are_refused() -> None:
    network = Predictor()
    network.arithmetic = "int4"
    with pytest.raises(InexactError, match="expected one of grids, int8"):
        exchange_modules(network)


@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize(("value", "message"), [(torch.inf, "not finite"), (1e35, "too large")])
def test_infinite_and_huge_weights_are_refused(name: str, value: float, message: str) -> None:
    network = randomised(Predictor())
    with torch.no_grad():
        getattr(network.exit, name).view(-1)[0] = value
    with pytest.raises(InexactError, match=message):
        calibrated(network, calibrate)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("embedding.weight", lambda x: x.fill_(torch.nan), "embedding.weight holds a number"),
        ("embedding.weight", lambda x: x.fill_(-1e30), "embedding.weight holds a number"),
        ("context.2.exponential", lambda x: x.add_(1), r"sums of context\.2 are not exact"),
        ("context.2.steps", lambda x: x.zero_(), r"sums of context\.2 are not exact"),
        ("exit.zero", lambda x: x.fill_(127), "sums of exit are not exact"),
        ("entry.zero", lambda x: x.fill_(256), "sums of entry are not exact"),
        ("entry.weight", lambda x: x.fill_(-128), "sums of entry are not exact"),
        ("entry.scale", lambda x: x.neg_(), "sums of entry are not exact"),
    ],
)
def test_damaged_numbers_are_found(
    predictor: nn.Module, name: str, change: Callable[[Tensor], Tensor], message: str
) -> None:
    network = copy.deepcopy(predictor)
    with torch.no_grad():
        change(network.state_dict()[name])
    with pytest.raises(InexactError, match=message):
        check(network)


def test_no_entry_of_a_table_is_near_a_rounding_boundary() -> None:
    """The functions of all libraries then give the same tables."""
    context = Context(prec=40)

    def exp(x: float) -> Decimal:
        return context.exp(Decimal(x))

    tables = [
        # Unrounded value, table entry, and the offset before rounding down.
        ([255 * exp(-i / 64) for i in range(401)], int8_attention.exponential_table(), "0.5"),
        ([2**14 * exp(-i / 64) for i in range(623)], grid_attention.exponential_table(), "0"),
        (
            [256 / (1 + exp(-i / 128)) for i in range(-1024, 1025)],
            256 * layers.sigmoid_table(),
            "0.5",
        ),
    ]
    for numbers, table, half in tables:
        assert len(numbers) == len(table)
        for number, entry in zip(numbers, table.tolist(), strict=True):
            if number == 2**14:  # exp(0), exactly
                assert entry == number
                continue
            number += Decimal(half)
            assert int(number) == entry and abs(number - round(number)) > Decimal("1e-6")


def test_weights_whose_sums_would_not_fit_get_coarser_grids() -> None:
    layer = QuantisedLinear(nn.Linear(3000, 2))
    folded = layer.folded(torch.full((2, 3000), 0.5))
    layer.set_weights(folded, torch.zeros(2), torch.full((2,), 0.5 / 127))
    assert layer.is_exact() and int(layer.weight[0, 0]) < 50
    torch.testing.assert_close(layer.floating()[0], torch.full((2, 3000), 0.5), rtol=0.02, atol=0)


def test_layers_that_calibration_never_applies_are_refused() -> None:
    network = Predictor()
    network.more = nn.Linear(2, 2)
    with pytest.raises(InexactError, match="more was never applied"):
        calibrated(network, calibrate)


class Louder(Rows):
    """Looks like a residual block, but is not one."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 4 * self.second(F.leaky_relu(self.first(x), self.leak))


def test_modules_that_only_look_like_residual_blocks_are_refused() -> None:
    network = Predictor()
    network.body.append(Louder(32))
    with pytest.raises(InexactError, match=r"block body\.2 has the submodules first and second"):
        calibrated(randomised(network), calibrate)


def test_no_residual_block_but_those_of_two_layers() -> None:
    assert is_residual_block(Rows(2))
    assert is_residual_block(ResidualBlock(2))
    block = Rows(2)
    block.third = nn.Linear(2, 2)
    assert not is_residual_block(block)

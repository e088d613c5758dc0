"""Networks in the exact scheme "int8": the same numbers everywhere, tensors, proof of exactness."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from italic.coding.exact import (
    InexactError,
    calibrated,
    check,
    exact_arithmetic,
    exchange_modules,
    floating_state,
    integer_state,
    load_integer_state,
)
from italic.coding.exact.int8_network import is_residual_block
from italic.models.layers import ResidualBlock
from tests.coding.exact.int8_networks import Predictor, Rows, by, calibrate, inputs, randomised


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
        "import numpy as np, torch;"
        "from italic.coding.exact import exchange_modules, load_integer_state, products;"
        "from tests.coding.exact.int8_networks import Predictor, inputs;"
        "network = exchange_modules(Predictor());"
        f"load_integer_state(network, torch.load({str(state)!r}));"
        "out = network(*inputs(9)).numpy();"
        f"same = np.array_equal(out, np.load({str(tmp_path / 'expected.npy')!r}));"
        "print(products.use_int8(), same)"
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


def test_no_residual_block_but_those_of_two_layers() -> None:
    assert is_residual_block(Rows(2))
    assert is_residual_block(ResidualBlock(2))
    block = Rows(2)
    block.third = nn.Linear(2, 2)
    assert not is_residual_block(block)

import hashlib
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from italic.coding.base_codes.base import BPG, NoBase
from italic.coding.exact import InexactError, check, exact_arithmetic, make_exact
from italic.coding.exact.grid_layers import ExactConv2d, quantise
from italic.coding.streams.codec import Codec
from italic.models.rnan import RNAN
from italic.schedule import Schedule

FULL = {"features": 16, "groups": 2, "components": 3}
SMALL = {**FULL, "space_to_depth": 2, "mask_branch": False, "recurrent": False}
HOURGLASS = {**SMALL, "groups": 1, "deep": 2, "leak": 0.125, "largest_stride": 4}
OPTIONS = {"full": FULL, "small": SMALL, "hourglass": HOURGLASS}
# Hashes for the networks of `trained`, the same on all machines and libraries with IEEE 754.
GOLDEN = {
    "full": "491f61c1044cd80f9917c6418f0c7441bdf3978895f323ed4ac5294f0247d9ec",
    "small": "e24bb432e4a014e4658f7bc0f673c0e742cb3ce8244f852fe707bc3541615c7f",
    "hourglass": "ab7b900775be8c17e60d16844621180b9fa112f27e2bf6f9b0b9c1092fe7310b",
}
SETTINGS = [
    {"ATEN_CPU_CAPABILITY": "default"},
    {"ONEDNN_MAX_CPU_ISA": "SSE41", "OMP_NUM_THREADS": "2"},
    {"ONEDNN_MAX_CPU_ISA": "AVX", "MKL_CBWR": "COMPATIBLE"},
    {"ONEDNN_DEFAULT_FPMATH_MODE": "BF16"},
]


def weights(network: RNAN) -> RNAN:
    """Fixed weights similar to trained ones, computed identically on every machine."""
    with torch.no_grad():
        for number, parameter in enumerate(network.parameters()):
            values = np.arange(parameter.numel(), dtype=np.int64) + 1000003 * number
            values = (values * 2654435761 % 2**32) / 2**32 - 0.5
            scale = 0.6 / max(1.0, parameter[0].numel() ** 0.5) if parameter.ndim > 1 else 0.05
            parameter.copy_(torch.from_numpy(values * 2 * scale).view_as(parameter))
    return network.eval()


def pictures(count: int, height: int = 16, width: int = 16) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    kinds = np.arange(count)[:, None, None, None]
    colours = np.arange(3)
    smooth = 90 + 3 * y[..., None] + (2 + colours) * x[..., None] + 20 * kinds
    return ((smooth + (y * 37 + x * 101)[..., None] % 13) % 256).astype(np.uint8)


def trained(options: dict) -> RNAN:
    network = weights(RNAN(**options))

    def calibrate(untouched: nn.Module) -> None:
        Codec(untouched, NoBase(), Schedule(), 4).encode(pictures(2))

    return make_exact(network, calibrate)


@pytest.fixture(scope="module", params=list(OPTIONS))
def network(request: pytest.FixtureRequest) -> tuple[str, RNAN]:
    return request.param, trained(OPTIONS[request.param])


def outputs(network: RNAN, batch: int, channels_last: bool = False) -> list[np.ndarray]:
    """Integer parameters of the entropy coder for six images, from two applications."""
    images = torch.from_numpy(pictures(6)).permute(0, 3, 1, 2).float()
    rank = torch.arange(256).view(16, 16) * 101 % 256
    fields = []
    for rows in images.split(batch):
        features = None
        for known in (0, 100):
            mask = (rank < known).float().expand(len(rows), 1, 16, 16).contiguous()
            arguments = [rows, torch.full_like(rows, 128), mask]
            if channels_last:
                arguments = [x.to(memory_format=torch.channels_last) for x in arguments]
            with torch.inference_mode(), exact_arithmetic():
                mixture, last = network(*arguments, features)
            features = last if network.recurrent else None
        fields.append([(field * 1024).round().long().numpy() for field in mixture])
    return [np.concatenate(parts) for parts in zip(*fields, strict=True)]


def digest(network: RNAN) -> str:
    """Hash of a network's outputs and of its streams."""
    parts = [field.tobytes() for field in outputs(network, 3)]
    parts += [coded.stream for coded in Codec(network, NoBase(), Schedule(), 3).encode(pictures(2))]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_batch_threads_and_layout_change_nothing(network: tuple[str, RNAN]) -> None:
    _, exact_network = network
    expected = outputs(exact_network, 6)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for batch in (1, 4, 6):
                for channels_last in (False, True):
                    for one, other in zip(
                        outputs(exact_network, batch, channels_last), expected, strict=True
                    ):
                        assert np.array_equal(one, other)
    finally:
        torch.set_num_threads(before)


def test_golden_hash(network: tuple[str, RNAN]) -> None:
    kind, exact_network = network
    assert digest(exact_network) == GOLDEN[kind]


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(settings))
def test_golden_hash_with_every_instruction_set(settings: dict[str, str]) -> None:
    code = (
        "from tests.coding.exact import test_exact as t;"
        "print(*(t.digest(t.trained(t.OPTIONS[kind])) for kind in t.GOLDEN))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **settings}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == list(GOLDEN.values())


PRODUCTS = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv)


@pytest.mark.parametrize("settings", ["medium", "bf16", "tf32"])
def test_lower_precision_of_the_host_program_changes_nothing(settings: str) -> None:
    before = [product.fp32_precision for product in PRODUCTS]
    network = trained(OPTIONS["small"])
    try:
        if settings == "medium":
            torch.set_float32_matmul_precision("medium")
        else:
            for product in PRODUCTS:
                with suppress(RuntimeError):  # not all products support all precisions
                    product.fp32_precision = settings
        chosen = [product.fp32_precision for product in PRODUCTS]
        assert chosen != before
        assert digest(network) == GOLDEN["small"]
        assert [product.fp32_precision for product in PRODUCTS] == chosen
    finally:
        torch.set_float32_matmul_precision("highest")
        for product, precision in zip(PRODUCTS, before, strict=True):
            product.fp32_precision = precision


def test_autocasting_of_the_host_program_changes_nothing() -> None:
    network = trained(OPTIONS["small"])
    with torch.autocast("cpu", torch.bfloat16):
        assert digest(network) == GOLDEN["small"]


def test_the_last_thread_to_leave_restores_what_the_first_one_found() -> None:
    product = torch.backends.mkldnn.matmul
    before = product.fp32_precision
    first, second = exact_arithmetic(), exact_arithmetic()
    try:
        product.fp32_precision = "bf16"
        with first:
            second.__enter__()
        assert product.fp32_precision == "ieee" and not torch.backends.cudnn.enabled
        second.__exit__(None, None, None)
        assert product.fp32_precision == "bf16" and torch.backends.cudnn.enabled
    finally:
        product.fp32_precision = before


def test_convolutions_are_exact_sums_of_integers(network: tuple[str, RNAN]) -> None:
    _, exact_network = network
    torch.manual_seed(0)
    convolutions = [m for m in exact_network.modules() if isinstance(m, ExactConv2d)]
    assert len(convolutions) > 10
    for conv in convolutions[:12]:
        x = torch.randn(2, conv.in_channels, 9, 7) * 100 * conv.input_unit
        weight, bias = conv.integer_weights()
        counts = quantise(x, conv.input_unit, conv.input_limit).double()
        reference = nn.functional.conv2d(counts, weight, bias, conv.stride, conv.padding)
        with exact_arithmetic():
            assert torch.equal(conv(x).double(), reference * conv.units.double().view(1, -1, 1, 1))


def test_the_largest_inputs_stay_exact(network: tuple[str, RNAN]) -> None:
    """The worst case that the bound allows: every input at its limit with its weight's sign."""
    _, exact_network = network
    conv = exact_network.groups[0].conv
    assert isinstance(conv, ExactConv2d)
    weight, bias = conv.integer_weights()
    for channel in range(conv.out_channels):
        signs = torch.sign(weight[channel])[None]
        x = signs.float() * float(conv.input_unit) * 1e9
        with exact_arithmetic():
            out = nn.functional.conv2d(
                quantise(x, conv.input_unit, conv.input_limit), conv.weight, conv.bias
            )
        expected = conv.input_limit * weight[channel].abs().sum() + bias[channel]
        assert float(out[0, channel, 0, 0] / conv.units[channel]) == float(expected)


def test_exact_estimates_stay_close_to_the_trained_network(network: tuple[str, RNAN]) -> None:
    kind, exact_network = network
    untouched = weights(RNAN(**OPTIONS[kind]))
    image = torch.from_numpy(pictures(2)).permute(0, 3, 1, 2).float()
    known = (torch.arange(256).view(1, 1, 16, 16) % 3 == 0).float().expand(2, -1, -1, -1)
    with torch.inference_mode():
        one, _ = untouched(image, torch.full_like(image, 128), known)
        other, _ = exact_network(image, torch.full_like(image, 128), known)
    pixels = image.permute(0, 2, 3, 1)
    assert float(other.bits(pixels).mean()) == pytest.approx(
        float(one.bits(pixels).mean()), rel=3e-3
    )


@pytest.mark.parametrize("base", [NoBase(), BPG(qp=40)])
@pytest.mark.parametrize("steps", [1, 7])
def test_streams_decode_with_another_batch_size_and_thread_count(
    network: tuple[str, RNAN], base: object, steps: int
) -> None:
    _, exact_network = network
    originals = pictures(5)
    codec = Codec(exact_network, base, Schedule(), steps)  # type: ignore[arg-type]
    together = codec.encode(originals)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        alone = [codec.encode(image[None])[0] for image in originals]
        assert alone == together
        assert np.array_equal(codec.decode(together[:2], 16, 16), originals[:2])
    finally:
        torch.set_num_threads(before)


def test_weights_off_their_grid_or_too_large_are_found() -> None:
    for change in (lambda conv: conv.weight.mul_(1.01), lambda conv: conv.units.mul_(0.001)):
        network = trained(SMALL)
        with torch.no_grad():
            change(network.groups[0].conv)
        with pytest.raises(InexactError, match=r"groups\.0\.conv"):
            check(network)


def test_infinite_weights_are_refused() -> None:
    network = weights(RNAN(**SMALL))
    with torch.no_grad():
        network.groups[0].conv.weight[0, 0, 0, 0] = float("inf")
    image = torch.zeros(1, 3, 8, 8)
    with pytest.raises(InexactError, match="not finite"):
        make_exact(network, lambda untouched: untouched(image, image, image[:, :1]) and None)

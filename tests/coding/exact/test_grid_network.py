"""Networks in the exact scheme "grids": the same numbers and streams everywhere."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from italic.coding.base_codes.base import BPG, NoBase
from italic.coding.exact import InexactError, check, make_exact
from italic.coding.streams.codec import Codec
from italic.models.rnan import RNAN
from italic.schedule import Schedule
from tests.coding.exact.grid_networks import (
    GOLDEN,
    OPTIONS,
    SMALL,
    digest,
    outputs,
    pictures,
    trained,
    weights,
)

SETTINGS = [
    {"ATEN_CPU_CAPABILITY": "default"},
    {"ONEDNN_MAX_CPU_ISA": "SSE41", "OMP_NUM_THREADS": "2"},
    {"ONEDNN_MAX_CPU_ISA": "AVX", "MKL_CBWR": "COMPATIBLE"},
    {"ONEDNN_DEFAULT_FPMATH_MODE": "BF16"},
]


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
        "from tests.coding.exact import grid_networks as t;"
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

"""Element-wise kernels compute what PyTorch does, and round once."""

import pytest
import torch

from italic.coding.exact import kernels
from tests.coding.exact.int8_networks import LEAK


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

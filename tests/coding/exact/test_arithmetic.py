"""Settings of PyTorch in the host program: exact inference neither uses nor changes them."""

from contextlib import suppress

import pytest
import torch

from italic.coding.exact import exact_arithmetic
from tests.coding.exact.grid_networks import GOLDEN, OPTIONS, digest, trained

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

"""Tables of the coder, and CDFs of mixtures."""

from __future__ import annotations

import hashlib
from decimal import Decimal, localcontext

import mpmath
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from italic.coding.streams.entropy import MixtureParameters
from italic.coding.streams.range_coder import TOTAL, tables_of
from tests.coding.streams.mixtures import TABLES, extreme, frequencies


def cdf_in_python(parameters: MixtureParameters, pixel: tuple[int, int, int]) -> list[list[int]]:
    """The definition for a single pixel in Python's integers, which can't overflow."""
    logits, means, log_scales, coefficients = (a[0].tolist() for a in parameters.arrays)
    components = range(len(logits[0]))
    red, green = pixel[0] - 128, pixel[1] - 128
    cdfs = []
    for colour in range(3):
        top = max(logits[colour])
        exponentials = [int(TABLES.exponential[min(top - x, 1023)]) for x in logits[colour]]
        reciprocal = 2**58 // sum(exponentials)
        weights = [(x * reciprocal) >> 40 for x in exponentials]
        weights[logits[colour].index(top)] += 2**18 - sum(weights)
        edges = [0]
        for value in range(1, 256):
            mixture = 0
            for k in components:
                shift = [
                    0,
                    coefficients[0][k] * red,
                    coefficients[1][k] * red + coefficients[2][k] * green,
                ][colour]
                mean = means[colour][k] + ((shift + 32) >> 6)
                log_scale = min(max(log_scales[colour][k], -112), 183)
                inverse = int(TABLES.inverse_scale[log_scale + 112])
                position = ((16 * value - 8 - mean) * inverse + 2**15) >> 16
                mixture += weights[k] * int(TABLES.cdf[min(max(position, -16384), 16384) + 16384])
            edges.append(((mixture * (2**22 - 256)) >> 40) + value)
        cdfs.append([*edges, 2**22])
    return cdfs


@settings(max_examples=15)
@given(components=st.integers(1, 32), seed=st.integers(0, 2**32))
def test_cdf_is_strictly_increasing_and_as_defined(components: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    parameters = extreme(1, components, rng)
    r, g, b = rng.choice([0, 1, 128, 254, 255, int(rng.integers(256))], 3).tolist()
    table = frequencies(parameters, (r, g, b))
    assert table.min() >= 1
    assert (table.sum(axis=1) == TOTAL).all()
    np.testing.assert_array_equal(
        np.cumsum(table, axis=1), np.array(cdf_in_python(parameters, (r, g, b)))[:, 1:]
    )


def test_known_probabilities() -> None:
    logits = np.zeros((1, 3, 1), np.int32)
    means = np.array([100 * 16, 2040, 50_000], np.int32).reshape(1, 3, 1)
    log_scales = np.array([-112, 183, 0], np.int32).reshape(1, 3, 1)
    table = frequencies(MixtureParameters(logits, means, log_scales, logits), (0, 0, 0))
    assert table[0, 100] == TOTAL - 255  # narrow: all but the minimum of 1 for each other value
    assert table[1, :128].sum() == TOTAL // 2  # centred on 127.5: half lies under 128
    assert table[2, 255] == TOTAL - 255  # far above white: all the mass at the open end


def test_golden_tables() -> None:
    digest = hashlib.sha256()
    for table in TABLES:
        digest.update(table.astype("<i8").tobytes())
    assert digest.hexdigest() == (
        "5676abd7841cd42139e7b6a2bbb2278f8fce44af6d9576ada457595a11b310b7"
    )


def test_tables_do_not_hang_on_the_last_bits_of_exp() -> None:
    with localcontext(prec=40):
        exact = {
            "cdf": [2**22 / (1 + (Decimal(-x) / 1024).exp()) for x in range(-16384, 16385)],
            "exponential": [2**20 * (Decimal(-x) / 64).exp() for x in range(1024)],
            "inverse_scale": [2**22 * (Decimal(-x) / 32).exp() for x in range(-112, 184)],
        }
        for name, values in exact.items():
            table = getattr(TABLES, name)
            assert len(table) == len(values)
            distances = [abs(v - int(entry)) for v, entry in zip(values, table, strict=True)]
            assert max(distances) < Decimal("0.499999"), name


def test_the_table_of_the_gaussian_does_not_hang_on_the_last_bits_of_erfc() -> None:
    table = tables_of("gaussian").cdf
    assert hashlib.sha256(table.astype("<i8").tobytes()).hexdigest() == (
        "5ec20f41feaa3d53d7456bc9cee564019757e47b2cc18958c0f60c2b6d0e559a"
    )
    assert (table[::-1] == 2**22 - table).all() and (np.diff(table) >= 0).all()
    with mpmath.workdps(40):
        for x in range(0, 8 * 1024):  # beyond, all entries round to 2^22
            value = 2**22 * mpmath.ncdf(mpmath.mpf(x) / 1024)
            assert abs(value - int(table[16384 + x])) < 0.49999
    assert (table[16384 + 8 * 1024 :] == 2**22).all()

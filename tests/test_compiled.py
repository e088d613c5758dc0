"""Functions compiled by numba."""

from __future__ import annotations

from italic.compiled import compiled


def test_compiles_without_a_place_for_the_cache() -> None:
    namespace: dict = {}
    exec(
        "def double(x): return 2 * x", namespace
    )  # without a source file numba has no folder for its cache
    assert compiled()(namespace["double"])(21) == 42

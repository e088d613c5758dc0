"""Settings of a model file, which may say anything."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from italic.coding.model_files.loading import load_model
from italic.coding.model_files.model import ModelError
from tests.coding.model_files.tiny import NETWORK, TEXT

BASES = {"qps": [None, 40], "chroma": "420"}
WRONG: dict[str, Any] = {
    "5": "is damaged",
    "[]": "is damaged",
    '{"format": 4}': "recipe lacks the setting network",
    '{"format": true}': "has format True, expected",
    '{"format": 3}': "has format 3, expected 4: export its run again",
    "[" * 5000: "is damaged",
    **dict.fromkeys(('{"format": 4, "network": 5}', '{"format": 4, "network": 1e999}'), "network"),
}
CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"more": 1}, "an unknown setting 'more'"),
    ({"network": "_target_"}, "network"),
    ({"network": {"_target_": 5}}, "_target_ is 5: expected MODULE"),
    ({"network": {**NETWORK, "kind": "none"}}, "kind of network is 'none': expected rnan or latt"),
    ({"network": {**NETWORK, "kind": []}}, "kind of network"),
    ({"network": {**NETWORK, "colour": 1}}, "network has an unknown setting 'colour'"),
    ({"network": {**NETWORK, "features": 8.0}}, r"network\.features is 8\.0: expected int"),
    ({"network": {**NETWORK, "groups": True}}, r"network\.groups is True: expected int"),
    ({"network": {**NETWORK, "recurrent": 1}}, r"network\.recurrent is 1: expected bool"),
    ({"network": {**NETWORK, "leak": float("nan")}}, r"network\.leak is nan: expected float"),
    ({"network": {**NETWORK, "deep": "1"}}, r"network\.deep is '1': expected int \| None"),
    ({"network": {**NETWORK, "space_to_depth": 0}}, "space_to_depth must be from 1"),
    ({"network": {**NETWORK, "groups": 999, "features": 2048}}, "groups must be from 1 to 32"),
    ({"network": {**NETWORK, "features": 4096}}, r"tensor entry\.bias is int32 \(8,\)"),
    ({"network": {**NETWORK, "groups": 2}}, r"tensor groups\.1\.\S+ is none"),
    ({"network": {**NETWORK, "mask_branch": False}}, "expected none for its settings"),
    ({"network": {**NETWORK, "rungs": 2}}, r"network\.rungs is 2: expected 1, the base codes"),
    ({"base": "_target_"}, "base is '_target_': expected dict"),
    ({"base": {"qp": 52}}, "qp of BPG is an integer from 0 to 51"),
    ({"base": {"qp": "4"}}, r"base\.qp is '4': expected int"),
    ({"base": {"qps": [4.5]}}, r"base\.qps is \[4\.5\]"),
    ({"base": {"qps": []}}, "expected at least one rung"),
    ({"base": {"quality": 4}}, "base has an unknown setting 'quality'"),
    ({"base": BASES}, r"network\.rungs is 1: expected 2"),
    ({"order": ["."]}, "order is"),
    ({"order": "nowhere"}, "nowhere"),
    ({"steps": "many"}, "steps is 'many': expected int"),
    ({"steps": 1.5}, r"steps is 1\.5: expected int"),
    ({"steps": True}, "steps is True"),
    ({"steps": 0}, "steps is 0: expected 1 to 65536"),
    ({"steps": 10**30}, "steps is 1000"),
    ({"sizes": "odd"}, "sizes is 'odd': expected equal, power, planned, or"),
    ({"sizes": []}, r"sizes is \[\]: expected"),
    ({"sizes": [1, 0]}, r"sizes is \[1, 0\]: expected numbers above 0"),
    ({"sizes": [1, float("inf")]}, "sizes is"),
    ({"exponent": -1}, "exponent is -1: expected 0 to"),
    ({"exponent": float("nan")}, "exponent is nan"),
    ({"plans": 3}, "plans is 3"),
    ({"plans": {"2": [1, 1.5]}}, "plans is"),
    ({"plans": {"2": [1]}}, r"plans\.2 is \[1\]: expected 2 numbers"),
    ({"plans": {"2": [1, -1]}}, r"plans\.2 is \[1, -1\]: expected numbers above 0"),
    ({"plans": {"02": [1, 1]}}, "number of steps is '02'"),
    ({"plans": {"٢": [1, 1]}}, "number of steps is"),
    ({"rungs": {"4": 99}}, r"rungs\.4 is 99: expected 0 to 0"),
    ({"rungs": {"4": -1}}, r"rungs\.4 is -1"),
    ({"rungs": {"x": 0}}, "number of steps is 'x'"),
    ({"rungs": {"99999": 0}}, "number of steps is '99999'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("said", "reason"),
    [*WRONG.items(), *((json.dumps({**TEXT, **change}), reason) for change, reason in CHANGES)],
    ids=lambda text: text[-40:],
)
def test_whatever_a_file_says_it_is_refused_in_one_sentence(
    copy: Path, said: str, reason: str
) -> None:
    save_file(load_file(copy), copy, {"italic": said})
    with pytest.raises(ModelError, match=reason) as error:
        load_model(copy)
    assert str(copy) in str(error.value) and len(str(error.value)) < 600

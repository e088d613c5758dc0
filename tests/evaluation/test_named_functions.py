import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from italic import extensions
from italic.coding.model_files.model import ModelError
from italic.config import EvaluateConfig
from italic.evaluation.named_functions import function
from italic.evaluation.run import evaluate
from italic.extensions import ExtensionError
from italic.measuring.metrics import bits_per_pixel
from italic.run_directory import RunError
from italic.training.named_code import import_own_code

MODULE = """
def ratio(original, decoded, bits, factor=8): return factor * original.size / bits
class Constant:
    def __init__(self, value): self.value = value
    def __call__(self, original, decoded, bits): return self.value
class NotCallable: pass
def unlike(inputs): pass
"""
ARGUMENTS = ["original", "decoded", "bits"]
IMAGE = np.zeros((2, 3, 3), np.uint8)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user-defined module that is not imported yet."""
    (tmp_path / "my_functions.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(extensions, "_plugin_modules", {})
    monkeypatch.delitem(sys.modules, "my_functions", raising=False)
    return "my_functions"


def named(**node: Any) -> Any:
    cfg = OmegaConf.create({"metrics": {"mine": node}})
    import_own_code(cfg)
    return function(cfg.metrics.mine, "the metric mine", ARGUMENTS)


def test_functions_and_objects_of_classes_get_the_keys_of_the_node(module: str) -> None:
    assert named(_target_="italic.measuring.metrics.bits_per_pixel")(IMAGE, IMAGE, 12.0) == 2
    assert bits_per_pixel(IMAGE, IMAGE, 12.0) == 2
    assert named(_target_=f"{module}.ratio", factor=4)(IMAGE, IMAGE, 6) == 12
    assert named(_target_=f"{module}.Constant", value=3)(IMAGE, IMAGE, 6) == 3


def test_what_is_not_a_node_is_refused() -> None:
    with pytest.raises(RunError, match="the metric mine has no _target_"):
        function(OmegaConf.create({"mine": 3}).mine, "the metric mine", ARGUMENTS)


@pytest.mark.parametrize(
    "node, message",
    [
        ({"_target_": "my_functions.ratio", "facter": 4}, "unexpected keyword argument 'facter'"),
        ({"_target_": "my_functions.Constant"}, "missing a required argument: 'value'"),
        ({"_target_": "my_functions.NotCallable"}, "not a callable"),
        ({"_target_": "my_functions.unlike"}, "too many positional"),
        ({"_target_": "my_functions.Constant", "value": "???"}, "lacks a value"),
        ({"factor": 4}, "the metric mine has no _target_"),
    ],
    ids=str,
)
def test_what_cannot_be_called_is_refused(module: str, node: dict, message: str) -> None:
    with pytest.raises(RunError, match=message):
        named(**node)


@pytest.mark.parametrize(
    "name", ["my_functions.absent", "my_absent.ratio", "ratio", "italic.measuring.metrics.absent"]
)
def test_absent_functions_are_refused(module: str, name: str) -> None:
    with pytest.raises(ExtensionError):
        named(_target_=name)


def test_a_device_is_refused_before_models_and_data() -> None:
    cfg: Any = OmegaConf.structured(EvaluateConfig(weights="nosuch", device="meta"))
    cfg.mode = {"_target_": "italic.evaluation.modes.curve.measure"}
    with pytest.raises(ModelError, match="there is no device 'meta'"):
        evaluate(cfg)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"mode": {"uses": ["time"]}}, "a mode may use whole, metrics, steps, "),
        ({"mode": {"bins": 3}}, "unexpected keyword argument 'bins'"),
        ({"mode": {"uses": []}, "metrics": {"bpp": {}}}, "has no table for metrics"),
        ({"metrics": {"images": {}}}, "have a column images already"),
    ],
    ids=str,
)
def test_modes_are_refused_before_models_and_data(settings: dict, message: str) -> None:
    """The model does not exist, which would be refused later."""
    cfg: Any = OmegaConf.structured(EvaluateConfig(weights="nosuch"))
    target = "italic.evaluation.modes.curve.measure"
    cfg.mode = {"_target_": target, "uses": ["whole", "metrics"], **settings.get("mode", {})}
    for name in settings.get("metrics", {}):
        cfg.metrics = {name: {"_target_": "italic.measuring.metrics.bits_per_pixel"}}
    with pytest.raises(RunError, match=message):
        evaluate(cfg)

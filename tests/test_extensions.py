"""Plugins: names that model files may use, and layers that networks may have."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf
from torch import nn

from italic import extensions, orders
from italic.coding.exact import InexactError, check_layers
from italic.coding.model_files.loading import load_model
from italic.coding.model_files.model import ModelError, save_model
from italic.config import ModelConfig, NoBaseConfig
from italic.extensions import IMPORT, ExtensionError, import_own, own
from italic.models.rnan import RNAN
from italic.training.experiment import build_images, build_network
from italic.training.named_code import import_own_code, named, targets
from tests.coding.model_files.tiny import NETWORK, RECIPE, tiny_network

MODULE = """
from os import system
from italic.models.rnan import RNAN

class Net(RNAN): pass
class Images: pass
def down(height, width): return range(height * width)[::-1]
def twice(height, width): return [0, 0]
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user-defined module that is not imported yet."""
    (tmp_path / "my_test_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(extensions, "_plugin_modules", {})
    monkeypatch.delitem(sys.modules, "my_test_module", raising=False)
    return "my_test_module"


def test_names_stand_for_what_named_modules_define(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ExtensionError, match=IMPORT):
        own(f"{module}.down")
    assert module not in sys.modules
    monkeypatch.setenv(IMPORT, module)
    assert own(f"{module}.down")(2, 2)[0] == 3
    assert own(f"{module}.Net", type).__name__ == "Net"
    with pytest.raises(ExtensionError, match="is not a class"):
        own(f"{module}.down", type)
    for name in (f"{module}.system", f"{module}.absent", "os.system", "system"):
        with pytest.raises(ExtensionError, match="not part of ITALIC"):
            own(name)
    monkeypatch.setenv(IMPORT, "")
    with pytest.raises(ExtensionError, match="not part of ITALIC"):
        own("system")


def test_what_a_run_names_is_refused_at_once_if_its_model_file_could_not_name_it(
    module: str,
) -> None:
    def run(**settings: str) -> DictConfig:
        names = {
            "model": ModelConfig._target_,
            "base": NoBaseConfig._target_,
            "order": "nested",
            **settings,
        }
        model, base = ({"_target_": names[group]} for group in ("model", "base"))
        return OmegaConf.create({"model": model, "base": base, "masks": {"order": names["order"]}})

    import_own_code(run(model=f"{module}.Net", order=f"{module}.down"))
    for settings in ({"order": f"{module}.system"}, {"base": f"{module}.down"}):
        with pytest.raises(ExtensionError, match=r"not part of ITALIC|is not a class"):
            import_own_code(run(**settings))


def test_an_image_source_is_the_users_or_must_be_named(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = OmegaConf.create({"datamodule": {"images": {"_target_": f"{module}.Images"}}})
    with pytest.raises(ExtensionError, match=IMPORT):
        build_images(cfg)
    monkeypatch.setenv(IMPORT, module)
    assert build_images(cfg)
    monkeypatch.setenv(IMPORT, "")
    monkeypatch.setattr(extensions, "_plugin_modules", {})
    import_own_code(cfg)  # as a new run or an evaluation does for its command line
    assert build_images(cfg)


def test_an_absent_module_is_named() -> None:
    with pytest.raises(ExtensionError, match="PYTHONPATH"):
        import_own("my_absent_module")


@pytest.mark.parametrize("module", ["", ".", "..my", "my.", "my..orders"])
def test_a_module_whose_name_has_an_empty_part_is_refused(module: str) -> None:
    with pytest.raises(ExtensionError, match=f"module '{module}' has an empty part"):
        import_own(module)
    with pytest.raises(ExtensionError):
        import_own_code(OmegaConf.create({"masks": {"order": f"{module}.columns"}}))


def test_an_order_of_ones_own_gives_every_pixel_once(module: str) -> None:
    import_own(module)
    assert np.array_equal(orders.pixel_order(f"{module}.down", 2, 3), [5, 4, 3, 2, 1, 0])
    with pytest.raises(ValueError, match="once"):
        orders.pixel_order(f"{module}.twice", 1, 2)


@pytest.mark.parametrize(
    "foreign",
    [
        {"network": {"_target_": "os.system", "command": "true"}},
        {"base": {"_target_": "os.system", "command": "true"}},
        {"order": "os.kill"},
    ],
    ids=str,
)
def test_a_model_file_makes_nothing_that_nobody_allowed(foreign: dict, tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_model(path, tiny_network(), replace(RECIPE, **foreign))
    with pytest.raises(ModelError, match="not part of ITALIC"):
        load_model(path)


def test_a_run_may_begin_with_a_model_of_its_own_estimator(module: str, tmp_path: Path) -> None:
    path, settings = tmp_path / "own.safetensors", {"_target_": f"{module}.Net", **NETWORK}
    save_model(path, tiny_network(), replace(RECIPE, network=settings))
    with pytest.raises(ModelError, match="not part of ITALIC"):
        load_model(path)
    base, masks = {"_target_": NoBaseConfig._target_}, {"order": "nested"}
    cfg = OmegaConf.create({"model": settings, "base": base, "masks": masks})
    with pytest.raises(ExtensionError, match="earlier runs"):  # the user has not enabled the module
        build_network(cfg)
    import_own_code(cfg)
    build_network(cfg)
    assert type(load_model(path).network).__name__ == "Net"


def test_a_model_file_makes_objects_of_classes_alone(module: str, tmp_path: Path) -> None:
    import_own(module)
    path = tmp_path / "calls.safetensors"
    base = {"_target_": f"{module}.down", "height": 1, "width": 1}
    save_model(path, tiny_network(), replace(RECIPE, base=base))
    with pytest.raises(ModelError, match="is not a class"):
        load_model(path)


@pytest.mark.parametrize(
    "layer",
    [nn.GELU(), nn.Linear(2, 2), nn.Conv2d(2, 2, 1, bias=False), nn.Conv2d(2, 2, 3, dilation=2),
     nn.ConvTranspose2d(2, 2, 3, stride=2)],
    ids=str,
)  # fmt: skip
def test_layers_without_an_exact_form_are_refused(layer: nn.Module) -> None:
    with pytest.raises(InexactError, match="exact form"):
        check_layers(nn.Sequential(layer))


def test_rnan_has_exact_forms_alone() -> None:
    check_layers(RNAN(**NETWORK))


def test_earlier_runs_may_name_the_callbacks_and_loggers_of_conf(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(extensions, "_plugin_modules", {})
    conf = Path(__file__).parents[1] / "conf"
    names = [
        name
        for group in ("callbacks", "logger", "optimiser")
        for path in (conf / group).glob("*.yaml")
        for name in targets(OmegaConf.to_container(OmegaConf.load(path)))
    ]
    assert len(names) >= 3 and all(isinstance(named(name, object), type) for name in names)

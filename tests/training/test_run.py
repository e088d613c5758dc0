"""Training runs, from the configuration to the exported model."""

import os
import runpy
import sys
from pathlib import Path
from unittest.mock import patch

import lightning_fabric.loggers.tensorboard
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto import event_pb2

from italic import extensions
from italic.coding.exact import InexactError
from italic.coding.model_files.loading import load_model
from italic.datamodules.images import DataError
from italic.errors import SettingError
from italic.extensions import ExtensionError
from italic.run_directory import CONFIG, RunError, read_config
from italic.training.experiment import build_images, is_refusal
from italic.training.export import exported
from tests.runs import ROOT, TINY, refused, trained

pytestmark = pytest.mark.slow

BROKEN = """
from italic.models.lattice import LatticeNetwork

class Broken(LatticeNetwork):
    def raw(self, *args):
        first, second = [1]

class Unbuilt(LatticeNetwork):
    def __init__(self, **settings):
        first, second = [1]

class Refusing(LatticeNetwork):
    def __init__(self, **settings):
        from italic.errors import SettingError
        raise SettingError("three features at least")
"""


def test_errors_in_an_estimator_of_ones_own_keep_their_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_broken_module.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(extensions, "_plugin_modules", {})
    places = [f"hydra.run.dir={tmp_path}/run", f"datamodule.cache_dir={tmp_path}/cache"]
    words = [*TINY, *places, "model._target_=my_broken_module.Broken"]
    with pytest.raises(ValueError, match="not enough values") as error:
        trained(*words)
    assert not is_refusal(error.value)
    words[-1] = "model._target_=my_broken_module.Unbuilt"
    changes = patch.object(sys, "argv", ["train.py", *words]), patch.dict(os.environ)
    with changes[0], changes[1], pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    said = capsys.readouterr().err
    assert end.value.code == 1 and "first, second = [1]" in said and "not enough values" in said
    words[-1] = "model._target_=my_broken_module.Refusing"
    assert refused("train.py", *words) == "train.py: three features at least"
    words[-1] = "trainer.val_check_interval=100"  # rejected by Lightning
    assert "must be less than or equal" in refused("train.py", *words)
    words[-1] = "+model.depth=3"
    assert "unexpected keyword argument 'depth'" in refused("train.py", *words)


PARTS = """
from pytorch_lightning import Callback
from pytorch_lightning.loggers import CSVLogger
from torch.optim import SGD

class Plain(SGD): pass
class Constant:
    def __call__(self, progress): return 0.5
class Rates(Callback):
    seen = []
    def on_train_end(self, trainer, _):
        self.seen.append([group["lr"] for group in trainer.optimizers[0].param_groups])
class Csv(CSVLogger):
    def __init__(self, save_dir): super().__init__(save_dir, name="mine")
"""


def test_parts_of_ones_own_are_trained_with_and_resumed_if_they_are_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_parts.py").write_text(PARTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(extensions, "_plugin_modules", {})
    for place, text in {
        "optimiser/plain": "_target_: my_parts.Plain\nlr: 0.1",
        "lr_schedule/constant": "_target_: my_parts.Constant",
        "callbacks/rates": "rates: {_target_: my_parts.Rates}",
        "logger/mine": "defaults: [schema]\nothers: {mine: {_target_: my_parts.Csv}}",
    }.items():
        path = tmp_path / "conf" / f"{place}.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    words = [*TINY, f"hydra.run.dir={tmp_path}/run", f"datamodule.cache_dir={tmp_path}/cache"]
    own = ["optimiser=plain", "lr_schedule=constant", "callbacks=[rates]", "logger=mine"]
    search = f"hydra.searchpath=[file://{tmp_path}/conf]"
    assert trained(*words, *own, search) > 0
    assert sys.modules["my_parts"].Rates.seen == [[0.05]]
    assert (tmp_path / "run" / "mine" / "version_0" / "metrics.csv").is_file()
    monkeypatch.setattr(extensions, "_plugin_modules", {})
    with pytest.raises(ExtensionError, match="my_parts"):
        trained(f"resume={tmp_path}/run", "trainer.max_steps=4")
    monkeypatch.setenv(extensions.IMPORT, "my_parts")
    trained(f"resume={tmp_path}/run", "trainer.max_steps=4")


def test_the_event_file_of_tensorboard_has_the_losses(tmp_path: Path) -> None:
    places = [f"hydra.run.dir={tmp_path}/run", f"datamodule.cache_dir={tmp_path}/cache"]
    bpsp = trained(*TINY, "logger=tensorboard", "trainer.log_every_n_steps=1", *places)
    (path,) = (tmp_path / "run" / "tensorboard").rglob("events.*")
    data, logged = path.read_bytes(), {}
    while data:  # records of length (8 bytes), checksum (4), event, checksum (4)
        length = int.from_bytes(data[:8], "little")
        event = event_pb2.Event.FromString(data[12 : 12 + length])
        logged |= {item.tag: item.simple_value for item in event.summary.value}
        data = data[length + 16 :]
    assert logged["val/bpsp"] == pytest.approx(bpsp) and logged["train/bpsp"] > 0


def test_a_logger_without_its_package_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"):
        monkeypatch.setattr(lightning_fabric.loggers.tensorboard, package, False)
    with pytest.raises(RunError, match="package is not installed"):
        trained(*TINY, "logger=tensorboard", f"hydra.run.dir={tmp_path}/run")
    assert not (tmp_path / "run" / CONFIG).exists()


INEXACT = """
import torch
from torch import nn
from italic.models.base_image import fill
from italic.models.likelihood import Mixture, MixtureHead
from italic.models.step_network import StepNetwork

class Own(Mixture):
    pass

class Net(StepNetwork):
    def __init__(self, features=8, components=1, own=False):
        super().__init__()
        self.head, self.own = MixtureHead(components), own
        self.groups = nn.Sequential(
            nn.Conv2d(7, features, 3, padding=2, dilation=2), nn.GroupNorm(2, features), nn.SiLU(),
            nn.Conv2d(features, self.head.channels, 1))

    def forward(self, image, base, known, features=None, stride=1, rung=None, due=None):
        guess = fill(image, base, known)
        raw = self.groups(torch.cat([guess / 128 - 1, base / 128 - 1, known], 1))
        if due is not None:
            raw, guess = raw.flatten(2)[..., due], guess.flatten(2)[..., due]
        mixture = self.head(raw, guess)
        return Own(*mixture) if self.own else mixture, raw

class Convolution(Net):  # with an exact form
    def __init__(self, **settings):
        super().__init__(**settings)
        self.groups = nn.Conv2d(7, self.head.channels, 3, padding=1)
"""


@pytest.mark.parametrize("own_likelihood", [False, True])
def test_a_network_without_an_exact_form_is_trained_and_estimated_but_not_exported(
    own_likelihood: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "my_inexact.py").write_text(INEXACT)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(extensions, "_plugin_modules", {})
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mine.yaml").write_text("_target_: my_inexact.Net")
    words = [word for word in TINY if not word.startswith(("model.", "model=", "logger"))]
    words += ["model=mine", "logger.pictures=1", f"hydra.searchpath=[file://{tmp_path}/conf]"]
    words += [f"hydra.run.dir={tmp_path}/run", f"datamodule.cache_dir={tmp_path}/cache"]
    error: type[Exception]
    refusal, error = "groups.0 has no exact form", InexactError
    if own_likelihood:  # of a network whose layers are exact
        words += ["model._target_=my_inexact.Convolution", "+model.own=true"]
        refusal, error = "Own has no coder", SettingError
    with pytest.raises(error, match=rf"{refusal}.*training\.exact=false"):
        trained(*words)
    bpsp = trained(*words, "training.exact=false")
    assert 0 < bpsp < 9 and "can't be exported" in caplog.text
    assert "nothing is coded" in (tmp_path / "run" / "report.html").read_text()
    assert not (tmp_path / "run" / "model.safetensors").exists()
    with pytest.raises(RunError, match="can't be exported"):
        exported(tmp_path / "run")


def test_a_gaussian_mixture_is_trained_exported_and_coded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    places = [f"hydra.run.dir={tmp_path}/run", f"datamodule.cache_dir={tmp_path}/cache"]
    caplog.set_level("INFO")
    bpsp = trained(*TINY, "model.likelihood=gaussian", "trainer.log_every_n_steps=1", *places)
    loggers = {record.name.partition(".")[0] for record in caplog.records}
    assert loggers == {"italic"}  # no tips and notes of Lightning
    assert [str(item.message) for item in recwarn] == []
    model = load_model(f"{tmp_path}/run/model.safetensors")
    assert model.recipe.network["likelihood"] == "gaussian"
    images = build_images(read_config(tmp_path / "run")).load("validation")[:4]
    coded = model.codec(2).encode(images)
    assert np.array_equal(model.codec(2).decode(coded, 8, 8), images)
    # After three updates some values are far in the tails, where the coder needs at most 22 bits.
    assert sum(item.bits for item in coded) / images.size < bpsp


@pytest.mark.parametrize("setting", ["masks.exponent=1000", "masks.sizes=[1e12,1]"])
def test_settings_that_no_model_file_can_store_are_refused(setting: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no model file can store"):
        trained(*TINY, setting, f"hydra.run.dir={tmp_path}/run")
    assert not (tmp_path / "run" / CONFIG).exists()


def test_a_training_that_has_diverged_is_named(tmp_path: Path) -> None:
    places = [f"hydra.run.dir={tmp_path}/run", f"datamodule.cache_dir={tmp_path}/cache"]
    with pytest.raises(RunError, match=r"has diverged.*optimiser\.learning_rate="):
        trained(*TINY, "optimiser.learning_rate=1e15", "optimiser.weight_decay=1e15", *places)


@pytest.mark.parametrize("crop", ["null", "8"])
def test_bad_images_are_refused_before_there_is_a_run(crop: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(8):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(tmp_path / "images" / f"{number}.png")
    words = [word for word in TINY if word != "datamodule=photos"]
    words += ["datamodule=folder", f"datamodule.images.crop={crop}"]
    words += [f"hydra.run.dir={tmp_path}/run", f"datamodule.images.cache_dir={tmp_path}/cache"]
    for folder, message in (("nowhere", "does not exist"), ("images", "can't be read")):
        for number in range(8) if folder == "images" else ():
            (tmp_path / "images" / f"{number}.png").write_bytes(b"no image")
        with pytest.raises(DataError, match=message):
            trained(*words, f"datamodule.images.path={tmp_path}/{folder}")
        assert not (tmp_path / "run" / CONFIG).exists()


@pytest.mark.slow
def test_the_last_weights_are_validated_whatever_ends_the_training(tmp_path: Path) -> None:
    places = [f"hydra.run.dir={tmp_path}/run", f"datamodule.cache_dir={tmp_path}/cache"]
    limits = ["trainer.max_steps=-1", "trainer.max_epochs=-1", "trainer.max_time=00:00:00:02"]
    assert trained(*TINY, *places, *limits, "trainer.check_val_every_n_epoch=1000000") > 0

import itertools
import math
import os
import runpy
import sys
import time
from copy import deepcopy
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast, get_args
from unittest.mock import patch

import lightning_fabric.loggers.tensorboard
import numpy as np
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from lightning_fabric.connector import _PRECISION_INPUT
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from tensorboardX.proto import event_pb2
from torch import nn

from italic import extensions
from italic.coding.exact import InexactError
from italic.coding.exact.fake_quantisation import FakeQuantisation
from italic.coding.model_files.loading import load_model
from italic.datamodules.images import DataError
from italic.errors import SettingError
from italic.extensions import ExtensionError
from italic.run_directory import CONFIG, RunError, read_config
from italic.training.callbacks import QuantisedInputs, moving_average
from italic.training.checkpoints import Checkpoints, WholeCheckpoints
from italic.training.experiment import build_datamodule, build_estimator, build_images, is_refusal
from italic.training.export import exported
from italic.training.trainer_settings import trainer_settings
from tests.runs import ROOT, TINY, refused, trained
from tests.test_config import composed

pytestmark = pytest.mark.slow


def save_forever(path: Path) -> None:
    torch.set_num_threads(1)  # threads do not survive a fork
    for count in itertools.count():
        WholeCheckpoints().save_checkpoint({"weights": torch.full((10**6,), count)}, path)


def test_the_moving_average_begins_short_and_ends_at_its_decay() -> None:
    update = moving_average(0.9)
    average, value = [torch.zeros(2)], [torch.ones(2)]
    update(average, value, 0)
    assert average[0].tolist() == pytest.approx([0.9, 0.9])  # decay 1/10
    average = [torch.zeros(2)]
    update(average, value, torch.tensor(10**6))
    assert average[0].tolist() == pytest.approx([0.1, 0.1])
    constant = [torch.full((2,), 3.0)]
    for count in range(50):
        update(constant, [torch.full((2,), 3.0)], count)
    assert constant[0].tolist() == pytest.approx([3.0, 3.0])


def test_a_checkpoint_is_whole_however_its_writer_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    for pause in (0.0, 0.007):
        path.unlink(missing_ok=True)
        process = get_context("fork").Process(target=save_forever, args=(path,))
        process.start()
        while not path.exists() and process.is_alive():
            time.sleep(0.001)
        time.sleep(pause)
        process.kill()
        process.join()
        weights = torch.load(path)["weights"]
        assert (weights == weights[0]).all()
    WholeCheckpoints().save_checkpoint({"weights": torch.ones(3)}, path)
    assert torch.load(path)["weights"].tolist() == [1, 1, 1]


def test_the_checkpoint_of_least_bpsp_is_the_best(tmp_path: Path) -> None:
    saved: list[str] = []
    quantised = QuantisedInputs()
    quantised.quantisation = cast(Any, SimpleNamespace(grids={}))
    trainer: Any = SimpleNamespace(
        sanity_checking=True,
        global_step=0,
        is_global_zero=True,
        default_root_dir=tmp_path,
        callback_metrics={"val/bpsp": torch.tensor(1.0)},
        callbacks=[quantised],
        save_checkpoint=lambda path, weights_only: saved.append(path.name),
    )
    module: Any = None
    checkpoints = Checkpoints()
    checkpoints.on_validation_end(trainer, module)
    assert not saved
    trainer.sanity_checking = False
    for bpsp, names in ((4.0, 2), (5.0, 1), (float("nan"), 1), (3.5, 2), (3.5, 1)):
        saved.clear()
        trainer.callback_metrics["val/bpsp"] = torch.tensor(bpsp)
        checkpoints.on_validation_end(trainer, module)
        assert saved == ["best.ckpt", "last.ckpt"][-names:]
    assert checkpoints.state_dict() == {"bpsp": 3.5, "quantised": False}
    # The exact network is quantised too, so results without it don't count any more.
    quantised.quantisation.grids["layer"] = cast(Any, 1)
    for bpsp, names in ((3.7, 2), (3.8, 1), (3.6, 2)):
        saved.clear()
        trainer.callback_metrics["val/bpsp"] = torch.tensor(bpsp)
        checkpoints.on_validation_end(trainer, module)
        assert saved == ["best.ckpt", "last.ckpt"][-names:]
    quantised.quantisation.grids.clear()  # in a resumed run, before it begins
    trainer.callback_metrics["val/bpsp"] = torch.tensor(3.5)
    checkpoints.on_validation_end(trainer, module)
    assert checkpoints.state_dict() == {"bpsp": pytest.approx(3.6), "quantised": True}


@pytest.mark.parametrize("resumes", [False, True])
def test_a_new_run_leaves_nothing_of_another_in_its_directory(
    resumes: bool, tmp_path: Path
) -> None:
    """Else its result, if it ended early, would be the other's."""
    trainer: Any = SimpleNamespace(is_global_zero=True, default_root_dir=tmp_path)
    module: Any = None
    paths = [tmp_path / "checkpoints" / name for name in ("best.ckpt", "last.ckpt")]
    for path in paths:
        WholeCheckpoints().save_checkpoint({}, path)
    Checkpoints(resumes).on_train_start(trainer, module)
    assert [path.is_file() for path in paths] == [resumes, resumes]


@pytest.mark.parametrize(
    "saved, bpsp",
    [
        ({"Checkpoints": {"bpsp": 3.5, "quantised": True}}, 3.5),
        ({"Meter": {"seconds": 1.0}}, math.nan),
    ],
)
def test_a_resumed_run_knows_its_best(saved: dict[str, Any], bpsp: float, tmp_path: Path) -> None:
    checkpoint = {"state_dict": {}, "global_step": 1, "callbacks": saved}
    WholeCheckpoints().save_checkpoint(checkpoint, tmp_path / "checkpoints" / "best.ckpt")
    trainer: Any = SimpleNamespace(default_root_dir=tmp_path)
    module: Any = None
    checkpoints = Checkpoints(resumes=True)
    checkpoints.on_fit_start(trainer, module)
    assert checkpoints.bpsp == pytest.approx(bpsp, nan_ok=True)
    assert checkpoints.quantised == (bpsp == 3.5)


def test_every_precision_of_lightnings_works_or_is_refused(tmp_path: Path) -> None:
    every = [str(name) for name in itertools.chain(*map(get_args, get_args(_PRECISION_INPUT)))]
    assert {"64-true", "bf16-true", "16-true", "transformer-engine", "bf16-mixed"} <= set(every)
    works = set()
    cfg = composed("train")
    for name in every:
        cfg.trainer.precision = name
        try:
            works.add(trainer_settings(cfg, tmp_path)["precision"])
        except RunError as error:
            assert "expected 32-true, bf16-mixed or 16-mixed" in str(error)
    assert set(map(str, works)) == {"32", "16", "bf16", "32-true", "16-mixed", "bf16-mixed"}


@pytest.fixture(scope="module")
def small() -> DictConfig:
    return composed("train", "model=rnan", "datamodule=photos", "base=none")


def changed(cfg: DictConfig, setting: str) -> DictConfig:
    """A copy of a configuration with one setting changed; faster than composing it by Hydra."""
    override = OverridesParser.create().parse_override(setting)
    cfg = deepcopy(cfg)
    OmegaConf.update(cfg, override.key_or_group, override.value())
    return cfg


@pytest.mark.parametrize(
    "setting, message",
    [
        ("trainer.max_epochs=0", "trainer.max_epochs must be 1 or more"),
        ("trainer.max_epochs=-2", "trainer.max_epochs must be 1 or more"),
        ("trainer.max_steps=0", "trainer.max_steps must be 1 or more"),
        ("trainer.max_epochs=-1", "without an end"),
        ("trainer.max_time=00:00:00:00", "max_time must be above 0"),
        ("trainer.max_time={minutes:0}", "max_time must be above 0"),
        ("trainer.max_time=soon", "DD:HH:MM:SS"),
        ("trainer.max_time=5", "DD:HH:MM:SS"),
        ("trainer.max_time=[1]", "DD:HH:MM:SS"),
        ("trainer.max_time={hours:x}", "DD:HH:MM:SS"),
        ("trainer.max_time={hours:inf}", "DD:HH:MM:SS"),
        ("trainer.max_time={years:1}", "DD:HH:MM:SS"),
        ("trainer.limit_train_batches=0", "limit_train_batches must be above 0"),
        ("trainer.val_check_interval=0.0", "val_check_interval must be above 0"),
        ("trainer.check_val_every_n_epoch=0", "check_val_every_n_epoch must be 1 or more"),
        ("trainer.accumulate_grad_batches=0", "accumulate_grad_batches must be 1 or more"),
        ("trainer.plugins=5", "plugins must be a list"),
        ("trainer.fast_dev_run=true", "debug=fast"),
    ],
)
def test_trainings_that_would_not_begin_or_end_are_refused(
    setting: str, message: str, small: DictConfig, tmp_path: Path
) -> None:
    with pytest.raises((RunError, SettingError, MisconfigurationException), match=message):
        trainer_settings(changed(small, setting), tmp_path)


@pytest.mark.parametrize(
    "setting, message",
    [
        ("datamodule.batch_size=0", "batch_size must be 1 or more"),
        ("datamodule.eval_batch_size=0", "eval_batch_size must be 1 or more"),
        ("datamodule.workers=-1", "workers must be 0 or more"),
        ("datamodule.eval_limit=-1", "eval_limit must be 0 or more"),
        ("masks.unroll=-1", "unroll must be 0 or more"),
        ("steps=0", "steps must be 1 or more"),
        ("optimiser.learning_rate=-1", "optimiser.learning_rate must be 0 or more"),
        ("optimiser.learning_rate=nan", "optimiser.learning_rate must be 0 or more"),
        ("optimiser.learning_rate=inf", "optimiser.learning_rate must be a finite number"),
        ("optimiser.learning_rate=1e400", "optimiser.learning_rate must be a finite number"),
        ("lr_schedule.warmup=-1", "lr_schedule.warmup must be 0 or more"),
        ("model.features=0", "features must be from 1 to"),
        ("model.components=0", "components must be from 1 to"),
        ("model.space_to_depth=0", "space_to_depth must be from 1 to"),
    ],
)
def test_numbers_out_of_range_are_named(setting: str, message: str, small: DictConfig) -> None:
    cfg = changed(small, setting)
    with pytest.raises((RunError, SettingError), match=message):
        build_estimator(cfg)
        build_datamodule(cfg)


def test_more_steps_than_there_are_plans_are_refused() -> None:
    plans = ["model=rnan_small", "base=none", "masks.plans=cifar10"]
    with pytest.raises(SettingError, match=r"masks\.min_steps of at most that"):
        build_datamodule(composed("train", *plans, "masks.min_steps=65", "masks.max_steps=80"))
    build_datamodule(composed("train", *plans, "masks.min_steps=64", "masks.max_steps=80"))


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


def test_inputs_are_quantised_until_the_end_of_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[FakeQuantisation] = []

    class Observed(FakeQuantisation):
        def __init__(self, network: nn.Module) -> None:
            super().__init__(network)
            self.network = network
            used.append(self)

    monkeypatch.setattr("italic.training.callbacks.FakeQuantisation", Observed)
    quantised = "callbacks=quantised", "callbacks.quantised.every=2"
    trained(*TINY, *quantised, f"hydra.run.dir={tmp_path}")
    (quantisation,) = used
    linear = [module for module in quantisation.network.modules() if type(module) is nn.Linear]
    assert len(linear) == len(quantisation.grids) == 2  # both layers of the residual block
    assert not any(module._forward_pre_hooks for module in linear)
    rnan = "model=rnan", "model.features=8", "model.groups=1", "model.components=1"
    with pytest.raises(SettingError, match="RNAN has finer ones"):
        trained(*TINY[6:], *rnan, *quantised, f"hydra.run.dir={tmp_path / 'rnan'}")


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

import dataclasses
import inspect
import pickle
from pathlib import Path
from typing import Any, Literal, Optional, Union, get_args

import pytest
import torch
from hydra import compose, initialize
from hydra.core.config_store import ConfigStore
from hydra.errors import ConfigCompositionException
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import EarlyStopping
from torch.optim import SGD

from italic import config
from italic.coding.base_codes.base import Ladder
from italic.config import checked_type, register
from italic.datamodules.images import Folder
from italic.models.lattice import LatticeNetwork
from italic.models.lr_schedule import Progress, StepDecay
from italic.models.optimiser import Adam, Muon
from italic.models.rnan import RNAN
from italic.run_directory import RunError
from italic.training.experiment import build_callbacks, build_estimator
from italic.training.named_code import EVALUATION, named, targets
from tests.runs import ran

register()
CONF = Path(__file__).parents[1] / "conf"


def composed(config: str, *overrides: str) -> DictConfig:
    with initialize(version_base="1.3", config_path="../conf"):
        return compose(config, list(overrides))


FILES = [
    (path.parent.relative_to(CONF).as_posix(), path.stem)
    for path in sorted(CONF.glob("*/**/*.yaml"))
]


@pytest.mark.parametrize("group, name", FILES)
def test_every_yaml_composes(group: str, name: str) -> None:
    override = {
        "experiment": f"experiment={name}",
        "datamodule/images": f"datamodule/images={name}",
    }.get(group, f"{group}={name}")
    cfg = composed("evaluate" if group in ("mode", "metrics") else "train", override)
    assert OmegaConf.to_yaml(cfg)


def test_a_resumed_run_may_name_every_class_in_the_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's configuration may be untrusted, so its classes must be in the list of ITALIC's."""
    found = [
        name
        for path in CONF.glob("*/**/*.yaml")
        if path.parent.name not in EVALUATION  # these are no part of a run
        for name in targets(OmegaConf.to_container(OmegaConf.load(path)))
    ]
    assert "italic.training.callbacks.QuantisedInputs" in found
    for name in found:
        monkeypatch.setattr("italic.extensions._plugin_modules", {})  # no name enables another
        assert isinstance(named(name), type)


def test_evaluate_composes() -> None:
    assert composed("evaluate", "steps=[1,4]").steps == [1, 4]
    assert "Photos" in composed("evaluate", "datamodule=photos").datamodule.images._target_
    assert composed("evaluate", "mode=bits").mode._target_.endswith("bits.draw")
    assert "bpp" in composed("evaluate", "metrics=[bpp]").metrics
    for wrong in ("mode=curves", "metrics=[nosuch]", "mode.bins=3"):
        with pytest.raises(ConfigCompositionException):
            composed("evaluate", wrong)


@pytest.mark.parametrize(
    "override",
    [
        "steps=many",
        "stepz=8",
        "model.features=wide",
        "model.widht=3",
        "base.qp=high",
        "trainer.max_epochs=soon",
        "trainer.gradient_clip_val=much",
        "trainer.limit_val_batches=few",
        "trainer.precision=[]",
        "trainer.strategy=[ddp]",
        "masks.min_steps=few",
        "lr_schedule.warmup=long",
        "lr_schedule.warmpu=3",
        "optimiser=adam optimiser.body_learning_rate=1",  # a key of muon
        "optimiser.learning_rate=[]",
        "optimiser=sgd",
        "callbacks=early_stopping callbacks.early_stopping.patiense=3",
        "logger=tensorboard logger.others.tensorboard.nane=a",
        "datamodule.batch_sise=4",
        "trainer.max_epoch=3",
        "datamodule.images.validation=some",
        "model=transformer",
    ],
)
def test_unknown_keys_and_wrong_types_fail_at_once(override: str) -> None:
    with pytest.raises(ConfigCompositionException):
        composed("train", *override.split())


def test_every_key_but_the_listed_ones_has_a_type() -> None:
    """A new kind of annotation, of Lightning's or of a constructor, raises an error."""
    unchecked = {
        f"{name}.{item.name}"
        for name, kind in vars(config).items()
        if name.endswith("Config") and dataclasses.is_dataclass(kind)
        for item in dataclasses.fields(kind)
        if item.type in (Any, "Any")
    }
    trainer = {f"TrainerConfig.{key}" for key in config.ANY_OF_TRAINER}
    assert unchecked == {
        *trainer,
        *("MasksConfig.sizes", "EvaluationConfig.sizes", "EvaluateConfig.weights"),
        "EvaluateConfig.mode",
        *("TrainConfig.model", "TrainConfig.base", "DataModuleConfig.images"),
        *("TrainConfig.optimiser", "TrainConfig.lr_schedule"),
    }

    annotations = (complex, dict[str, int], list[Path], int | list[int], Callback | None)
    for annotation in annotations:
        with pytest.raises(TypeError, match="the argument key of X has the type"):
            checked_type(annotation, "key of X")
    for annotation in (Optional[Union[int, float]], int | float | None):  # noqa: UP007, UP045
        assert set(get_args(checked_type(annotation, ""))) == {int, float, type(None)}
    assert checked_type(Literal["a", "b"], "") is str


KEYS = {
    config.ModelConfig: RNAN,
    config.LatticeConfig: LatticeNetwork,
    config.FolderConfig: Folder,
    config.LadderConfig: Ladder,
    config.MuonConfig: Muon,
    config.StepDecayConfig: StepDecay,
}


@pytest.mark.parametrize("kind", KEYS, ids=lambda kind: kind.__name__)
def test_keys_are_the_arguments_of_the_constructor(kind: Any) -> None:
    cfg = OmegaConf.structured(kind)
    assert get_class(cfg._target_) is KEYS[kind]
    arguments = inspect.signature(KEYS[kind]).parameters
    assert {*cfg} - {"_target_"} == {*arguments} - {"rungs", "parameters"}
    for key in {*cfg} - {"_target_"}:
        default = arguments[key].default
        if default is inspect.Parameter.empty:
            assert OmegaConf.is_missing(cfg, key)
        else:
            assert cfg[key] == (list(default) if isinstance(default, tuple) else default)
    assert pickle.loads(pickle.dumps(cfg)) == cfg  # as for the launchers of sweeps


@pytest.mark.parametrize("group, name", [pair for pair in FILES if "experiment" not in pair[0]])
def test_files_of_a_group_hold_what_differs_from_its_schema(group: str, name: str) -> None:
    own = OmegaConf.load(CONF / group / f"{name}.yaml")
    if group not in ("debug", "callbacks", "mode", "metrics"):
        (extended,) = [item for item in own.pop("defaults") if isinstance(item, str)]
        declared = ConfigStore.instance().load(f"{group}/{extended}.yaml").node
        assert all(declared[key] != value for key, value in own.items())


def test_any_trainer_setting_may_be_given() -> None:
    cfg = composed("train", "trainer.precision=bf16-mixed", "trainer.devices=2")
    assert cfg.trainer.precision == "bf16-mixed" and cfg.trainer.devices == 2


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("bfloat16", ["", "cpu", "cuda"])  # device with fast bfloat16 products
def test_presets_choose_the_precision_for_the_machine(
    gpu: bool, bfloat16: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(config, "multiplies_bfloat16", lambda device: device.type == bfloat16)
    on_gpu = "cuda" if gpu else "cpu"
    cfg = composed("train", "experiment=cifar10_cpu")
    for accelerator, device in {"auto": on_gpu, "gpu": on_gpu, "cpu": "cpu"}.items():
        cfg.trainer.accelerator = accelerator
        assert cfg.trainer.precision == ("bf16-mixed" if device == bfloat16 else "32-true")


def test_the_precision_of_a_preset_may_be_given() -> None:
    given = composed("train", "experiment=cifar10_cpu", "trainer.precision=16-mixed")
    assert given.trainer.precision == "16-mixed"


def test_each_part_of_rnan_can_be_switched_off() -> None:
    for option in ("attention", "mask_branch", "recurrent", "step_embedding"):
        cfg = composed("train", "model.features=8", "model.groups=2", f"model.{option}=false")
        assert build_estimator(cfg).unroll == (1 if option == "recurrent" else 2)


def test_the_job_configuration_can_be_shown() -> None:
    shown = ran("train.py", "model=rnan_small", "steps=8", "--cfg", "job")
    assert OmegaConf.create(shown).steps == 8


def test_optimiser_schedule_callbacks_and_loggers_are_choices() -> None:
    chosen = "optimiser=adam lr_schedule=step callbacks=[early_stopping] logger=tensorboard"
    cfg = composed("train", *chosen.split(), "optimiser.betas=[0.8,0.9]")
    module = build_estimator(cfg)
    optimiser = module.configure_optimizers()["optimizer"]
    assert isinstance(optimiser, Adam) and optimiser.defaults["betas"] == (0.8, 0.9)
    assert module.lr_schedule(Progress(0, 25, 0.1)) == 0.2
    assert isinstance(build_callbacks(cfg)[0], EarlyStopping)
    cfg.optimiser = {"_target_": "torch.optim.SGD", "lr": 0.1}
    assert type(build_estimator(cfg).configure_optimizers()["optimizer"]) is SGD
    for optimiser, message in (
        ({"_target_": "torch.optim.SGD", "rate": 0.1}, "torch.optim.SGD can't be made"),
        ({"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 1}, "is not an optimiser"),
    ):
        cfg.optimiser = optimiser
        with pytest.raises(RunError, match=message):
            build_estimator(cfg)
    cfg.callbacks = {"mine": {"_target_": "italic.models.lr_schedule.StepDecay"}}
    with pytest.raises(RunError, match="StepDecay is not a callback of Lightning"):
        build_callbacks(cfg)

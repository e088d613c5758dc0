from pathlib import Path

import pytest
import torch
from hydra import compose, initialize
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf

from italic import config
from italic.config import register
from italic.training.experiment import build_estimator
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
    cfg = composed("train", override)
    assert OmegaConf.to_yaml(cfg)


def test_evaluate_composes() -> None:
    assert composed("evaluate", "steps=[1,4]").steps == [1, 4]
    assert "Photos" in composed("evaluate", "datamodule=photos").datamodule.images._target_


@pytest.mark.parametrize(
    "override",
    [
        "steps=many",
        "stepz=8",
        "model.features=wide",
        "model.widht=3",
        "base.qp=high",
        "trainer.max_epochs=soon",
        "trainer.max_epoch=3",
        "datamodule.images.validation=some",
        "model=transformer",
    ],
)
def test_unknown_keys_and_wrong_types_fail_at_once(override: str) -> None:
    with pytest.raises(ConfigCompositionException):
        composed("train", override)


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

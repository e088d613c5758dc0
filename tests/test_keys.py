import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from italic import config
from italic.declared_keys import Keys, declared_keys
from italic.errors import SettingError
from italic.keys import refuse_unknown


@pytest.mark.parametrize(
    "words",
    [
        ["steps=8", "model=lattice", "model.features=8", "datamodule/images=photos", "-m"],
        ["experiment/ablation=raster", "hydra.run.dir=x=y", "hydra/launcher=joblib", "debug=fast"],
        ["trainer.max_epochs=3", "model._target_=x.Y", "masks.sizes=equal", "base.qp=40"],
        ["datamodule.images.crop=8", "optimiser.betas=[0,0]", "training.exact=false"],
        ["logger.others.any.key=1", "callbacks.early_stopping.patience=3"],
        # User-defined choices and earlier runs may have keys of other classes.
        ["model=plain", "model.depth=3"],
        ["datamodule=gradients", "datamodule.images.count=3"],
        ["experiment=mine", "optimiser.momentum=0.5"],
        ["resume=RUN", "model.depth=3"],
        ["+mine=sgd", "optimiser.momentum=0.5"],
        ["--config-dir=mine/conf", "--config-name", "mine", "group=a", "top.key=1"],
        ["-cnmine", "group=a"],
        ["+more=1", "~model.leak", "--config-dir", "mine/conf=1", "weights=a.safetensors"],
    ],
)
def test_known_keys_and_groups_pass(words: list[str]) -> None:
    refuse_unknown(words, "TrainConfig")


def test_keys_of_a_group_without_a_choice_are_refused() -> None:
    """Hydra would refuse them with a traceback."""
    words = ["weights=cifar10", "datamodule.images.data_dir=x"]
    with pytest.raises(
        SettingError, match=r"nothing is chosen: expected datamodule=NAME too, with"
    ):
        refuse_unknown(words, "EvaluateConfig")
    refuse_unknown([*words, "datamodule=cifar10"], "EvaluateConfig")
    refuse_unknown(["+datamodule=mine", *words], "EvaluateConfig")
    refuse_unknown(words[1:], "TrainConfig")  # its default is cifar10


def test_unknown_keys_are_refused_and_the_nearest_is_named() -> None:
    with pytest.raises(SettingError, match="unknown key modle: did you mean model"):
        refuse_unknown(["steps=8", "modle=lattice"], "TrainConfig")
    with pytest.raises(SettingError, match="unknown key nosuch"):
        refuse_unknown(["nosuch=1"], "EvaluateConfig")
    with pytest.raises(SettingError, match="unknown key resume"):
        refuse_unknown(["resume=RUN"], "EvaluateConfig")


@pytest.mark.parametrize(
    "word, message",
    [
        ("trainer.max_epoks=3", "unknown key trainer.max_epoks: did you mean trainer.max_epochs"),
        ("masks.min_stepps=3", r"did you mean masks\.min_steps"),
        ("model.featurs=3", r"did you mean model\.features"),
        ("datamodule.images.cropp=3", r"did you mean datamodule\.images\.crop"),
        ("datamodule.batch_sise=3", r"did you mean datamodule\.batch_size"),
        ("optimiser.nosuch=3", "unknown key optimiser.nosuch: see docs"),
        ("experiment.x=1", "unknown key experiment: see docs"),
    ],
)
def test_unknown_keys_of_groups_are_refused(word: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        refuse_unknown(["model=lattice", word], "TrainConfig")


@pytest.mark.parametrize("word", ["mode=null", "mode=", "datamodule=null", "metrics=null"])
def test_a_group_without_a_choice_is_refused_with_its_choices(word: str) -> None:
    with pytest.raises(SettingError, match=f"{word} chooses nothing: .*NAME with one of [a-z]+"):
        refuse_unknown([word], "EvaluateConfig")


def test_keys_of_modes_are_refused_and_those_of_mode_and_metrics_pass() -> None:
    words = ["evaluate.curve.timed=3", "mode.bins=3", "metrics.mine.factor=3", "device=cpu"]
    refuse_unknown(words, "EvaluateConfig")
    with pytest.raises(SettingError, match=r"did you mean evaluate\.curve\.timed"):
        refuse_unknown(["evaluate.curve.timd=3"], "EvaluateConfig")


@pytest.mark.parametrize("schema", ["TrainConfig", "EvaluateConfig"])
def test_declared_keys_are_those_of_the_configuration(schema: str) -> None:
    def check(keys: Keys | None, kind: Any, group: str) -> None:
        assert keys is not None
        assert {*keys} == {item.name for item in dataclasses.fields(kind)}, group
        for item in dataclasses.fields(kind):
            place = f"{group}.{item.name}".strip(".")
            if place in config.CHOICES:
                below = keys[item.name]
                assert below is not None
                for name, choice in config.CHOICES[place].items():
                    assert {*below} >= {each.name for each in dataclasses.fields(choice)}, name
            elif "Config" in str(item.type):
                name = str(item.type).partition(" ")[0]
                check(keys[item.name], getattr(config, name), place)
            else:
                assert keys[item.name] is None

    check(declared_keys(schema), getattr(config, schema), "")


def test_a_misspelt_key_is_refused_without_slow_imports() -> None:
    code = (
        "import sys; sys.argv[1:] = ['trainer.max_epoks=3']\n"
        "from italic.train import main\n"
        "try: main()\n"
        "except SystemExit as end:\n"
        "    assert 'did you mean trainer.max_epochs' in end.code\n"
        "slow = {'torch', 'pytorch_lightning', 'hydra', 'numpy'} & {*sys.modules}\n"
        "assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from italic.coding.model_files.installed import SEARCH_PATH, WEIGHTS
from italic.coding.model_files.model import ModelError
from italic.config import CIFAR10Config, PhotosConfig
from italic.evaluation.sources import find_sources, images_for
from italic.run_directory import RunError

FILE = WEIGHTS / "cifar10.safetensors"
PHOTOS = {"_target_": PhotosConfig._target_, "size": 16}


def asked(**settings: Any) -> DictConfig:
    nothing = {"ckpt_path": None, "runs": None, "weights": None, "datamodule": None}
    return OmegaConf.create({**nothing, **settings})


def images_of(cfg: DictConfig) -> Any:
    return images_for(cfg, find_sources(cfg)).datamodule.images


def copied(folder: Path, name: str, card: dict[str, Any] | None) -> str:
    """The path of a copy of the installed model, with another card or no card."""
    path = folder / f"{name}.safetensors"
    shutil.copy(FILE, path)
    if card is not None:
        sha256 = json.loads(FILE.with_suffix(".json").read_text())["sha256"]
        path.with_suffix(".json").write_text(json.dumps({"sha256": sha256, **card}))
    return str(path)


def trained_on(images: Any) -> dict[str, Any]:
    return {"configuration": {"datamodule": {"images": images}}}


@pytest.mark.parametrize("weights", ["cifar10", ["cifar10"], str(FILE)])
def test_a_model_is_found_by_name_or_path_and_its_card_names_the_images(weights: Any) -> None:
    cfg = asked(weights=weights)
    (name, source), *others = find_sources(cfg).items()
    assert (name, source.model().name, others) == ("cifar10", "cifar10", [])
    assert images_of(cfg) == OmegaConf.structured(CIFAR10Config)


def test_several_models_are_measured_on_their_common_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SEARCH_PATH, str(tmp_path))
    same = trained_on({"_target_": "italic.datamodules.images.cifar10.CIFAR10"})
    *paths, _ = (copied(tmp_path, name, same) for name in ("one", "two", "installed"))
    assert list(find_sources(asked(weights=[*paths, "installed"]))) == ["one", "two", "installed"]
    assert images_of(asked(weights=[*paths, "cifar10"]))._target_ == CIFAR10Config._target_
    other = copied(tmp_path, "other", trained_on(PHOTOS))
    assert images_of(asked(weights=other)).size == 16
    with pytest.raises(RunError, match="different images"):
        images_of(asked(weights=[*paths, other]))


@pytest.mark.parametrize(
    "card",
    [
        None,
        {},
        {"configuration": 3},
        {"configuration": {"datamodule": {}}},
        trained_on("cifar10"),
        trained_on(
            {"_target_": "os.system", "command": "true"}
        ),  # a card must not instantiate other classes
        trained_on({"_target_": ["a"]}),
        trained_on({**PHOTOS, "sise": 3}),
        trained_on({**PHOTOS, "size": "large"}),
    ],
)
def test_images_that_no_card_names_must_be_given(
    card: dict[str, Any] | None, tmp_path: Path
) -> None:
    path = copied(tmp_path, "model", card)
    with pytest.raises(RunError, match=r"which images model was trained on.*datamodule=cifar10"):
        images_of(asked(weights=path))
    assert images_of(asked(weights=path, datamodule={"images": PHOTOS})) == PHOTOS


@pytest.mark.parametrize(
    "settings",
    [
        *({}, {"ckpt_path": "a", "runs": "b"}),
        *({"ckpt_path": ""}, {"runs": ""}, {"ckpt_path": "", "weights": "cifar10"}),
    ],
)
def test_runs_in_one_way_or_models_are_expected(settings: dict[str, str]) -> None:
    with pytest.raises(RunError, match=r"expected ckpt_path=RUN_DIR or runs=.* weights=MODEL"):
        find_sources(asked(**settings))


def test_models_are_measured_beside_runs(tmp_path: Path) -> None:
    for name in ("mine", "cifar10"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text("steps: 4\n")
        (tmp_path / name / "checkpoints" / "last.ckpt").touch()
    run = str(tmp_path / "mine")
    assert list(find_sources(asked(ckpt_path=run, weights="cifar10"))) == ["mine", "cifar10"]
    with pytest.raises(RunError, match="a run and a model are both named 'cifar10'"):
        find_sources(asked(runs=str(tmp_path), weights="cifar10"))


def test_a_run_has_the_name_of_its_folder_whatever_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine" / "checkpoints").mkdir(parents=True)
    (tmp_path / "mine" / "config.yaml").write_text("steps: 4\n")
    (tmp_path / "mine" / "checkpoints" / "last.ckpt").touch()
    monkeypatch.chdir(tmp_path / "mine")
    for path in (".", "./", "checkpoints/..", "../mine"):
        assert list(find_sources(asked(ckpt_path=path))) == ["mine"]
        assert list(find_sources(asked(runs=path))) == ["mine"]
    assert list(find_sources(asked(runs=".."))) == ["mine"]


def test_weights_that_are_none_or_unknown_or_the_same_are_refused() -> None:
    for nothing in ([], ""):
        with pytest.raises(RunError, match="names or the files of models"):
            find_sources(asked(weights=nothing))
    with pytest.raises(ModelError, match="no model 'absent'"):
        find_sources(asked(weights=["cifar10", "absent"]))
    with pytest.raises(RunError, match="two of the models are named 'cifar10'"):
        find_sources(asked(weights=["cifar10", str(FILE)]))


def test_runs_that_left_no_checkpoint_are_passed_over(tmp_path: Path) -> None:
    for name in ("failed", "trained"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text("steps: 4\n")
    (tmp_path / "trained" / "checkpoints" / "last.ckpt").touch()
    others = {"ckpt_path": None, "weights": None}
    assert list(find_sources(OmegaConf.create({"runs": str(tmp_path), **others}))) == ["trained"]
    with pytest.raises(RunError, match="with checkpoints"):
        find_sources(OmegaConf.create({"runs": str(tmp_path / "failed"), **others}))

"""Resuming a run: settings that may change, files that stay, and allowed code."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from italic.coding.base_codes.base import BPG
from italic.extensions import ExtensionError
from italic.run_directory import RunError, find_result, load_checkpoint, read_config, with_latest
from italic.training.experiment import build_bases, build_images, build_network
from italic.training.export import exported
from italic.training.resuming import _typed, configure, resumed
from tests.runs import TINY, trained

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resuming")
    places = [f"datamodule.cache_dir={folder}/cache", f"hydra.run.dir={folder}/run"]
    trained(*TINY, *places)
    return folder / "run"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def composed(*words: str) -> DictConfig:
    primary = configure(words)
    with initialize(version_base="1.3", config_path="../../conf"):
        return compose(primary, list(words), return_hydra_config=True)


@pytest.mark.parametrize(
    "change, message",
    [
        ("model.features=16", "model.features can't be changed"),
        ("steps=4", "steps can't be changed"),
        ("masks.order=normal", "masks.order can't"),
        ("masks.exponent=2", "masks.exponent can't"),
        ("datamodule.images.size=4", "images.size can't"),
        ("datamodule.images._target_=os.system", "_target_ can't"),
        ("datamodule.eval_limit=2", "eval_limit can't"),
        ("optimiser.weight_decay=0", "restores it from its checkpoint"),
        ("training.find_batch_size=64", "find_batch_size can't"),
        ("model=rnan", "single values"),
        ("debug=fast", "single values"),
        ("+model.depth=3", "single values"),
        ("~model.features", "single values"),
        ("weights=cifar10", "leave out weights"),
        ("trainer.precision=64-true", "expected 32-true, bf16-mixed or 16-mixed"),
        ("trainer.max_steps=0", "max_steps must be 1"),
        ("datamodule.batch_size=0", "batch_size must be 1"),
        ("model.featurs=16", "featurs"),
        ("trainer.max_epochs=soon", "soon"),
    ],
)
def test_a_refused_resume_leaves_the_run_as_it_was(run: Path, change: str, message: str) -> None:
    before = files(run)
    with pytest.raises((RunError, ValueError, HydraException)) as error:
        trained(f"resume={run}", change)
    assert message in f"{error.value} {error.value.__cause__}"
    assert files(run) == before


def test_a_configuration_is_typed_and_has_defaults_for_keys_that_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "base: {_target_: italic.coding.base_codes.base.BPG, qp: 40}\n"
        "model: {_target_: italic.models.rnan.RNAN, features: 8, deep: null, leak: 0}\n"
        "datamodule: {batch_size: 4, images: {_target_: italic.datamodules.images.imagenet"
        ".DownsampledImageNet, data_dir: data/imagenet64, size: 64}}\n"
        "optimiser: {_target_: italic.models.optimiser.Muon, learning_rate: 2e-3}\n"
        "lr_schedule: {_target_: italic.models.lr_schedule.WarmupDecay, warmup: 7}\n"
        "training: {auxiliary: 0.1}\n"
        "trainer: {precision: bf16-mixed, max_time: '00:00:01:00', gradient_clip_val: 1,"
        " limit_train_batches: 4, val_check_interval: 200, devices: auto, plugins: null}\n"
    )
    cfg = _typed(tmp_path)
    (base,) = build_bases(cfg)
    assert base.identity == BPG(40).identity
    assert cfg.model.leak == 0.0 and cfg.model.groups == 9 and cfg.training.average_decay == 0.998
    assert (cfg.datamodule.images.size, cfg.datamodule.images.validation) == (64, 10_000)
    assert cfg.optimiser.learning_rate == 2e-3 and cfg.optimiser.body_learning_rate == 1.5e-3
    assert cfg.lr_schedule.warmup == 7 and cfg.training.auxiliary == 0.1
    assert cfg.trainer.limit_train_batches == 4 and cfg.trainer.precision == "bf16-mixed"
    with pytest.raises(OmegaConfBaseException):
        cfg.trainer.gradient_clip_val = "much"


def test_a_configuration_that_is_not_the_checkpoints_is_refused(run: Path, tmp_path: Path) -> None:
    path = shutil.copytree(run, tmp_path / "run")
    cfg = read_config(path)
    cfg.model.features = 16
    OmegaConf.save(cfg, path / "config.yaml")
    before = files(path)
    with pytest.raises(RunError, match=r"last\.ckpt do not match"):
        trained(f"resume={path}", "trainer.max_steps=5")
    assert files(path) == before
    (path / "config.yaml").write_text("hydra: {callbacks: {a: {_target_: os.system}}}")
    with pytest.raises(RunError, match="is not the configuration of a run"):
        configure([f"resume={path}"])


def test_an_empty_name_is_not_the_current_folder(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run)
    for word in ("resume=", "resume=''"):
        with pytest.raises(RunError, match="names no run"):
            configure([word])


def test_changes_are_read_by_hydras_grammar_and_on_the_runs_own_choices(run: Path) -> None:
    words = ["trainer.max_time=1:00:00:00", "datamodule.images.scale=1.0", "seed=3"]
    cfg = composed(f"resume={run}", *words, "trainer.max_epochs=null")
    assert cfg.trainer.max_time == "1:00:00:00" and cfg.trainer.max_epochs is None
    assert cfg.model == read_config(run).model and cfg.seed == 3
    assert cfg.hydra.run.dir == str(run)
    assert cfg.hydra.output_subdir is None  # keeps .hydra of the first start
    for word in ("trainer.max_epochs=soon", "datamodule.images.path=a"):  # photos have no path
        with pytest.raises(HydraException):
            composed(f"resume={run}", word)


def test_a_folder_that_has_moved_may_be_named(run: Path, tmp_path: Path) -> None:
    cfg = read_config(run)
    images = {"_target_": "italic.datamodules.images.folder.Folder", "path": "gone", "size": 8}
    cfg.datamodule.images = images
    OmegaConf.save(cfg, tmp_path / "config.yaml")
    cfg = composed(f"resume={tmp_path}", "datamodule.images.path=here", "trainer.max_steps=9")
    changed = resumed(OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"]))
    assert changed.datamodule.images.path == "here" and changed.resume is None
    with pytest.raises(HydraException):
        composed(f"resume={tmp_path}", "datamodule.images.size=wide")


def test_a_moved_run_goes_on_and_keeps_its_best(run: Path, tmp_path: Path) -> None:
    path = shutil.copytree(run, tmp_path / "moved, renamed=1")
    best = path / "checkpoints" / "best.ckpt"
    assert find_result(path) == best
    checkpoint = load_checkpoint(best)
    assert checkpoint["global_step"] == 3  # training ends with a validation
    checkpoint["callbacks"]["Checkpoints"]["bpsp"] = 0.5  # better than all later values
    torch.save(checkpoint, best)
    before = best.read_bytes()
    assert trained(f"resume={path}", "trainer.max_steps=5", "trainer.max_time=1:00:00:00") == 0.5
    assert best.read_bytes() == before
    assert load_checkpoint(path / "checkpoints" / "last.ckpt")["global_step"] == 5
    assert read_config(path).trainer.max_time == "1:00:00:00"
    model = exported(path)
    (path / "checkpoints" / "last.ckpt").write_bytes(before)  # the model does not depend on it
    assert exported(path).sha256 == model.sha256
    best.unlink()
    assert find_result(path).name == "last.ckpt"


def test_a_checkpoint_cannot_run_code(run: Path, tmp_path: Path) -> None:
    class Call:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "made"),)

    path = shutil.copytree(run, tmp_path / "run")
    for name in ("last.ckpt", "best.ckpt"):
        file = path / "checkpoints" / name
        torch.save({**load_checkpoint(file), "more": Call()}, file)
    for use in (lambda: trained(f"resume={path}", "trainer.max_steps=9"), lambda: exported(path)):
        with pytest.raises(RunError, match="damaged or not a checkpoint") as error:
            use()
        assert len(str(error.value)) < 400
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "group, node",
    [
        ("model", {"_target_": "subprocess.Popen", "args": "true"}),
        ("base", {"_target_": "subprocess.Popen", "args": "true"}),
        ("images", {"_target_": "os.mkdir", "path": "made"}),
        ("images", {"_target_": "${trainer.max_time}", "path": "made"}),
        ("images", {"size": {"_target_": "os.mkdir", "path": "made"}}),
        ("images", {"size": [{"_target_": "os.mkdir", "path": "made"}]}),
        ("images", {"_target_": "italic.datamodules.cached.made_once", "path": "made"}),
        ("model", {"features": {"_target_": "os.mkdir", "path": "made"}}),
    ],
    ids=str,
)
def test_a_runs_configuration_names_nothing_but_italics_own(
    run: Path, group: str, node: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = OmegaConf.create(OmegaConf.to_container(read_config(run)))
    cfg.trainer.max_time = "os.mkdir"
    place = cfg.datamodule if group == "images" else cfg
    place[group] = {**place[group], **node}
    use = {"model": build_network, "base": build_bases, "images": build_images}[group]
    with pytest.raises(ExtensionError, match=r"ITALIC_IMPORT|is not a class"):
        use(cfg)
    shutil.copytree(run, tmp_path / "run")
    OmegaConf.save(cfg, tmp_path / "run" / "config.yaml")
    with pytest.raises(ExtensionError):
        exported(tmp_path / "run")
    assert not (tmp_path / "made").exists()


def test_latest_is_the_run_with_a_checkpoint_that_began_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="no run with a checkpoint"):
        with_latest(["resume=latest"])
    for age, (name, checkpoint) in enumerate(
        {"2026-01-02/10": False, "2026-01-01/a=b": True, "2026-01-02/09": True}.items()
    ):
        folder = tmp_path / "runs" / name
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "config.yaml").touch()
        os.utime(folder / "config.yaml", (1000 - age, 1000 - age))
        if checkpoint:
            (folder / "checkpoints" / "last.ckpt").touch()
    assert with_latest(["resume=latest", "seed=1"]) == ["resume=runs/2026-01-01/a=b", "seed=1"]
    assert with_latest(["ckpt_path=latest"]) == ["ckpt_path=runs/2026-01-01/a=b"]
    assert with_latest(["resume=./latest", "x=latest"]) == ["resume=./latest", "x=latest"]


def test_early_stopping_goes_on_from_the_last_validation_with_another_patience(
    tmp_path: Path,
) -> None:
    def state() -> dict[str, Any]:
        path = tmp_path / "run" / "checkpoints" / "last.ckpt"
        callbacks = load_checkpoint(path)["callbacks"]
        return next(value for name, value in callbacks.items() if "EarlyStopping" in name)

    places = [f"datamodule.cache_dir={tmp_path}/cache", f"hydra.run.dir={tmp_path}/run"]
    still = ["optimiser.learning_rate=0", "optimiser.body_learning_rate=0"]
    often = ["trainer.val_check_interval=1", "trainer.max_steps=30", "trainer.max_epochs=-1"]
    stopping = ["callbacks=early_stopping", "callbacks.early_stopping.patience=1"]
    trained(*TINY, *places, *still, *often, *stopping)
    assert state()["wait_count"] == state()["patience"] == 1
    trained(f"resume={tmp_path}/run", "callbacks.early_stopping.patience=3")
    assert state()["wait_count"] == state()["patience"] == 3


def test_a_resumed_run_finishes_the_epoch_that_was_interrupted(tmp_path: Path) -> None:
    places = [f"datamodule.cache_dir={tmp_path}/cache", f"hydra.run.dir={tmp_path}/run"]
    sizes = ["datamodule.train_limit=12", "datamodule.batch_size=4", "trainer.max_epochs=2"]
    trained(*TINY, *places, *sizes, "trainer.max_steps=2")
    trained(f"resume={tmp_path}/run", "trainer.max_steps=-1")
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 6

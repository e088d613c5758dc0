"""train.py and evaluate.py as a user runs them, on small models and few images."""

import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from PIL import Image

from italic import run_directory
from italic.coding.model_files.loading import load_model
from italic.measuring.dashboard import run_identity
from italic.training import experiment
from italic.training.export import MODEL, publish
from tests.runs import ran, refused, trained

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SMALL = [
    "model=rnan_small",
    "model.features=8",
    "model.groups=1",
    "model.components=2",
    "datamodule=folder",
    "datamodule.batch_size=4",
    "datamodule.eval_limit=4",
    "trainer.max_steps=6",
    "trainer.val_check_interval=3",
    "trainer.check_val_every_n_epoch=null",
    "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1",
    "threads=1",
    "logger.pictures=0",
]

SLURM = {
    "sbatch": """
cp "${@: -1}" "$(dirname "$0")/job.sh"
export SLURM_JOB_ID=7 SLURM_JOB_NUM_NODES=1 SLURM_JOB_NODELIST=localhost
bash "${@: -1}" > /dev/null 2>&1 &
echo "Submitted batch job 7"
""",
    "srun": """
while [[ $1 == -* ]]; do [[ $1 == --output || $1 == --error ]] && shift; shift; done
SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_NTASKS=1 "$@"
""",
    "sacct": "echo 'JobID|State|NodeList'; echo '7|RUNNING|localhost'",
}


def run(script: str, *arguments: str, code: int = 0) -> str:
    """What a script prints in a process of its own, which takes seconds to start."""
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def last_step(run_dir: Path) -> int:
    path = run_dir / "checkpoints" / "last.ckpt"
    return torch.load(path, weights_only=False)["global_step"]


def metrics(run_dir: Path, version: int) -> list[dict[str, str]]:
    text = (run_dir / "csv" / f"version_{version}" / "metrics.csv").read_text()
    return list(csv.DictReader(text.splitlines()))


def validated(run_dir: Path) -> list[float]:
    return [float(row["val/bpsp"]) for row in metrics(run_dir, 0) if row["val/bpsp"]]


def table(sweep_dir: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((sweep_dir / "sweep.csv").read_text().splitlines()))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A folder of noisy gradients, and the settings that train on it."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    y, x = np.mgrid[:64, :160]
    for index in range(4):
        smooth = 60 + (index + 1) * 0.3 * (x + y)[..., None] + random.normal(0, 5, (64, 160, 3))
        Image.fromarray(smooth.clip(0, 255).astype(np.uint8)).save(folder / f"{index}.png")
    return [f"datamodule.images.path={folder}", f"datamodule.cache_dir={folder}/cache"]


@pytest.fixture(scope="module")
def run_dir(images: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    precision = "trainer.precision=${fastest_precision:cpu}"
    ran("train.py", *SMALL, *images, precision, "base=none", "steps=4", f"hydra.run.dir={path}")
    return path


def test_a_run_leaves_configuration_checkpoints_and_losses_by_part(run_dir: Path) -> None:
    written = OmegaConf.to_container(OmegaConf.load(run_dir / "config.yaml"))
    assert written["trainer"]["precision"] in ("bf16-mixed", "32-true")
    assert last_step(run_dir) == 6
    rows = metrics(run_dir, 0)
    validated = [row for row in rows if row["val/bpsp"]]
    assert len(validated) == 2
    parts = ["val/bpsp_base", *(f"val/bpsp_step_{step:02d}" for step in range(1, 5))]
    for row in validated:
        assert float(row["val/bpsp"]) == pytest.approx(sum(float(row[part]) for part in parts))


def test_evaluate_codes_decodes_and_draws(run_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "evaluation"
    ran(
        "evaluate.py",
        f"ckpt_path={run_dir}",
        "steps=[1,3]",
        "evaluate.limit=3",
        "evaluate.curve.timed=1",
        "evaluate.pictures=2",
        f"output={output}",
        "logger=wandb",
    )
    rows = json.loads((output / "curve.json").read_text())
    assert [row["steps"] for row in rows] == [1, 3] and all(row["lossless"] for row in rows)
    for row in rows:
        assert 0 < row["bpsp_coded"] < 1.005 * row["bpsp_estimated"] + 64 / 3072
    names = ("curve.csv", "curve.png", "codecs.csv", "panel.png", "example.italic", "report.html")
    assert all((output / name).stat().st_size for name in names)
    (logged,) = output.glob("wandb/offline-run-*/*.wandb")
    assert run_identity(run_dir) not in logged.name  # a run of its own, see test_dashboard


def test_model_files_are_evaluated_without_their_run(run_dir: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    ran("-m", "italic.export", str(run_dir), str(first), "--steps", "3")
    model, of_run = load_model(first), load_model(run_dir / MODEL)
    assert model.recipe == replace(of_run.recipe, steps=3) != of_run.recipe
    card = json.loads(first.with_suffix(".json").read_text())
    assert card["sha256"] == model.sha256
    for suffix in (".safetensors", ".json"):
        shutil.copy(first.with_suffix(suffix), second.with_suffix(suffix))
    output = tmp_path / "evaluation"
    limits = ["evaluate.limit=2", "evaluate.curve.timed=1", "evaluate.curve.codecs=false"]
    weights = f"weights=[{first},{second}]"
    ran("evaluate.py", weights, "steps=[1,3]", *limits, f"output={output}")
    assert (output / "curve.png").is_file()
    best = csv.DictReader((output / "envelope.csv").read_text().splitlines())
    front = [(row["steps"], row["model"] in ("first", "second")) for row in best]
    # On a busy machine one step may take longer than three, and is then not in the front.
    assert front in ([("1", True), ("3", True)], [("3", True)])
    for name in ("first", "second"):
        rows = json.loads((output / name / "curve.json").read_text())
        assert [row["steps"] for row in rows] == [1, 3] and all(row["lossless"] for row in rows)
        assert (output / name / "example.italic").is_file()


def test_whole_pictures_of_a_folder_are_evaluated(run_dir: Path, tmp_path: Path) -> None:
    """Also pictures that are smaller than a tile."""
    for number, size in enumerate([(40, 12), (9, 30), (40, 36)]):
        path = tmp_path / "kodak" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.effect_noise(size, 40).convert("RGB").save(path)
    folder = f"datamodule=folder datamodule.images.path={tmp_path}/kodak evaluate.split=all"
    settings = [f"datamodule.images.cache_dir={tmp_path}/cache", f"output={tmp_path}/evaluation"]
    curve = ["steps=[2]", "evaluate.curve.timed=1", "evaluate.curve.codecs=false"]
    ran("evaluate.py", f"ckpt_path={run_dir}", *folder.split(), *settings, *curve)
    with (tmp_path / "evaluation" / "images.csv").open() as file:
        rows = list(csv.DictReader(file))
    sizes = [(row["image"], row["height"], row["width"]) for row in rows]
    assert sizes == [("0.png", "12", "40"), ("1.png", "30", "9"), ("2.png", "36", "40")]


def test_debug_runs_go_from_end_to_end(images: list[str], tmp_path: Path) -> None:
    model = [setting for setting in SMALL if not setting.startswith("trainer.")]
    quiet = "trainer.enable_progress_bar=false"
    settings = [*model, *images, "base=none", "steps=2", quiet]
    fast, profiled = tmp_path / "fast", tmp_path / "profiled"
    ran("train.py", *settings, "debug=fast", f"hydra.run.dir={fast}")
    assert last_step(fast) == 4 and load_model(fast / "model.safetensors")
    (validated,) = [row for row in metrics(fast, 0) if row["val/bpsp"]]
    assert float(validated["val/bpsp"]) > 0
    more = ["training.find_batch_size=12", "trainer.accumulate_grad_batches=2"]
    ran("train.py", *settings, "debug=profile", *more, f"hydra.run.dir={profiled}")
    assert "run_training_batch" in (profiled / "fit-profile.txt").read_text()
    assert OmegaConf.load(profiled / "config.yaml").datamodule.batch_size == 8
    assert not list(profiled.glob(".scale_batch_size*"))


def test_planned_sizes_need_plans(run_dir: Path, tmp_path: Path) -> None:
    settings = ("steps=[1]", "evaluate.limit=1", f"output={tmp_path}/out")
    said = refused("evaluate.py", f"ckpt_path={run_dir}", *settings, "evaluate.sizes=planned")
    assert "has no plans" in said


def test_a_resumed_run_goes_on_in_its_own_directory(images: list[str], tmp_path: Path) -> None:
    path = tmp_path / "run"
    settings = [*SMALL, *images, "base=none", "steps=2", "logger=wandb"]
    trained(*settings, f"hydra.run.dir={path}")
    trained(f"resume={path}", "trainer.max_steps=9")
    assert last_step(path) == 9
    rows = metrics(path, 1)
    assert min(int(row["step"]) for row in rows if row["step"]) >= 5
    identities = {item.name.split("-")[-1] for item in path.glob("wandb/offline-run-*")}
    assert len(identities) == 1  # both parts belong to one W&B run
    assert "single values" in refused("train.py", f"resume={path}", "model=rnan")
    publish(path, tmp_path / "model.safetensors")
    card = json.loads((tmp_path / "model.json").read_text())
    assert card["optimiser_steps"] == 9 and card["images_seen"] == 9 * 4
    curve = card["validation_curve"]
    assert [point["updates"] for point in curve] == [3, 6, 9]
    seconds = [0, *(point["seconds"] for point in curve), card["training_seconds"]]
    assert seconds == sorted(seconds)
    start = [
        f"weights={tmp_path}/model.safetensors",
        "model.groups=2",
        "lr_schedule.warmup=1000000",
    ]
    trained(*settings, *start, f"hydra.run.dir={tmp_path}/larger")
    begun = float(metrics(tmp_path / "larger", 0)[-1]["val/bpsp"])
    assert begun == pytest.approx(curve[-1]["bpsp"], rel=1e-3)


def test_a_multirun_and_the_figure_of_its_curves(images: list[str], tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    settings = [*SMALL, *images, "base=bpg", f"hydra.sweep.dir={sweep}"]
    said = ran("train.py", "-m", "steps=1,2", *settings)
    runs = sorted(path.parent for path in sweep.glob("*/config.yaml"))
    assert [path.name for path in runs] == ["0_steps=1", "1_steps=2"]
    for path, number in zip(runs, ("1 step", "2 steps"), strict=True):
        assert f"best in {number}: {path}, {min(validated(path)):.4f} bpsp" in said
    assert [row["directory"] for row in table(sweep)] == [path.name for path in runs]
    output = tmp_path / "comparison"
    limits = ["evaluate.limit=2", "evaluate.curve.timed=1", "evaluate.curve.codecs=false"]
    ran("evaluate.py", f"runs={sweep}", "steps=[1,2]", *limits, f"output={output}")
    assert (output / "curve.png").is_file()
    for path in runs:
        rows = json.loads((output / path.name / "curve.json").read_text())
        assert all(row["lossless"] and row["bpsp_base"] > 0 for row in rows)


def test_runs_side_by_side_of_which_one_is_refused(images: list[str], tmp_path: Path) -> None:
    settings = [*SMALL, *images, "base=bpg", "steps=1", "trainer.accelerator=cpu"]
    side_by_side = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    sweep = ["trainer.devices=1,2", f"hydra.sweep.dir={tmp_path}"]
    said = run("train.py", "-m", *settings, *side_by_side, *sweep, code=1)
    assert "1 of 2 runs failed" in said.splitlines()[-1] and "Traceback" not in said
    first, second = table(tmp_path)
    assert (first["trainer.devices"], first["error"]) == ("1", "")
    assert float(first["bpsp"]) == pytest.approx(min(validated(tmp_path / first["directory"])))
    assert (second["trainer.devices"], second["bpsp"]) == ("2", "")
    assert "add trainer.devices=1" in second["error"]


def test_optuna_looks_for_the_least_validation_bpsp(images: list[str], tmp_path: Path) -> None:
    space = "optimiser.learning_rate=tag(log,interval(1e-4,1e-2))"
    optuna = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.sampler.seed=0"]
    ran("train.py", "-m", *SMALL, *images, "base=none", "steps=1", *optuna, space,
        f"hydra.sweep.dir={tmp_path}")  # fmt: skip
    first, second = table(tmp_path)
    assert float(first["bpsp"]) <= float(second["bpsp"])
    found = OmegaConf.load(tmp_path / "optimization_results.yaml")
    assert found.best_value == float(first["bpsp"])
    assert found.best_params["optimiser.learning_rate"] == float(first["optimiser.learning_rate"])


def test_slurm_gets_a_job_that_trains(
    images: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm's commands are played by scripts that run the job on this machine."""
    for name, text in SLURM.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    sweep = tmp_path / "sweep"
    slurm = ["hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=90"]
    gpus = ["hydra.launcher.partition=gpu", "hydra.launcher.gpus_per_node=1"]
    run("train.py", "-m", *SMALL, *images, "base=none", "steps=1", *slurm, *gpus,
        f"hydra.sweep.dir={sweep}")  # fmt: skip
    script = (tmp_path / "job.sh").read_text().splitlines()
    for setting in ("time=90", "partition=gpu", "gpus-per-node=1", "ntasks-per-node=1"):
        assert f"#SBATCH --{setting}" in script
    (row,) = table(sweep)
    assert float(row["bpsp"]) == pytest.approx(min(validated(sweep / "0_steps=1")))


def test_two_processes_validate_as_one_does(images: list[str], tmp_path: Path) -> None:
    path = tmp_path / "run"
    several = ["trainer.devices=2", "trainer.strategy=ddp", "trainer.accelerator=cpu"]
    uneven = ["datamodule.eval_limit=5", "datamodule.eval_batch_size=2"]  # 2 batches and 1
    run("train.py", *SMALL, *uneven, *images, *several, "base=none", "steps=4",
        f"hydra.run.dir={path}")  # fmt: skip
    cfg = run_directory.read_config(path)
    estimator, data = experiment.build_estimator(cfg), experiment.build_datamodule(cfg)
    estimator.network = experiment.load_network(path)
    trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    (alone,) = trainer.validate(estimator, data, verbose=False)
    assert validated(path)[-1] == pytest.approx(alone["val/bpsp"], rel=1e-5)
    (tested,) = trainer.test(estimator, data, verbose=False)
    assert tested["test/bpsp"] == pytest.approx(alone["val/bpsp"], rel=0.3)  # other images
    checkpoint = torch.load(path / "checkpoints" / "last.ckpt", weights_only=False)
    assert checkpoint["global_step"] == 6
    assert checkpoint["callbacks"]["Meter"]["images"] == 6 * 4 * 2
    assert (path / "model.safetensors").is_file() and not list(path.glob("*process_1*"))


def test_a_ladder_takes_the_rung_that_was_planned(images: list[str], tmp_path: Path) -> None:
    path, output = tmp_path / "run", tmp_path / "evaluation"
    ladder = ["base=ladder", "base.qps=[null,10]", "masks.sizes=planned", "steps=4"]
    ladder += ["datamodule.images.size=16"]
    ran("train.py", *SMALL, *images, *ladder, f"hydra.run.dir={path}")
    model = load_model(path / "model.safetensors")
    rungs = model.recipe.rungs
    assert set(rungs.values()) <= {0, 1} and set(rungs) == set(model.recipe.plans)
    limits = ["evaluate.limit=2", "evaluate.curve.timed=1", "evaluate.curve.codecs=false"]
    ran("evaluate.py", f"ckpt_path={path}", "steps=[1,70]", *limits, f"output={output}")
    for row in json.loads((output / "curve.json").read_text()):
        rung = rungs.get(str(row["steps"]), rungs["64"])
        assert row["lossless"] and (row["bpsp_base"] > 0) == (rung == 1)


def test_unrolled_training_of_the_original_estimator(images: list[str], tmp_path: Path) -> None:
    original = [argument for argument in SMALL if argument != "model=rnan_small"]
    path = tmp_path / "run"
    more = ["model=rnan", "masks=normal", "masks.unroll=0", "steps=4", "base=none"]
    few = ["datamodule.images.size=16", "trainer.max_steps=2", "trainer.val_check_interval=2"]
    ran("train.py", *original, *images, *more, *few, f"hydra.run.dir={path}")
    assert last_step(path) == 2


@pytest.mark.parametrize(
    "script, arguments, message",
    [
        ("train.py", ["datamodule.images.data_dir=nowhere", "datamodule.images.download=false"],
         "datamodule=photos"),
        ("train.py", ["datamodule=photos", "base.qp=77"], "0 to 51, not 77"),
        ("train.py", ["datamodule=photos", "masks.unroll=1"], "masks.unroll of 2 or more"),
        ("train.py", ["datamodule=photos", "steps=2000"], "number of pixels, 1024"),
        ("train.py", ["datamodule=photos", "masks.order=nestd"], "unknown pixel order"),
        ("train.py", ["datamodule=photos", "masks.sizes=[1,2]"],
         "must be 16 numbers"),
        ("train.py", ["datamodule=photos", "masks.min_steps=0"], "1 ≤ masks.min_steps"),
        ("train.py", ["datamodule=photos", "datamodule.train_limit=-1"], "train_limit"),
        ("train.py", ["threads=-1"], "threads must be from 0 to 1024; got -1"),
        ("evaluate.py", ["weights=cifar10", "threads=100000"], "threads must be from 0 to 1024"),
        ("train.py", ["datamodule=photos", "trainer.gradient_clip_val=-1"],
         "trainer.gradient_clip_val must be 0 or more"),
        ("train.py", ["datamodule=photos", "trainer.accelerator=cpu", "trainer.devices=0"],
         "devices"),
        ("train.py", ["datamodule=photos", "base=ladder"], "masks.sizes=planned"),
        ("train.py", ["datamodule=photos", "base=ladder", "base.qps=[40,40]",
                      "masks.sizes=planned"], "at least one rung"),
        ("train.py", ["datamodule=photos", "trainer.profiler=simpel"],
         "trainer.profiler=simple|advanced|pytorch"),
        ("train.py", ["datamodule=photos", "training.find_batch_size=4"],
         "at least datamodule.batch_size=8"),
        ("train.py", ["datamodule=imagenet64", "datamodule.images.data_dir=nowhere", "base=none"],
         "'nowhere/train_data_batch_1' is missing"),
        ("train.py", ["resume=nowhere"], "nowhere is not a run directory"),
        ("train.py", ["resume=nowhere", "weights=absent"], "leave out weights"),
        ("train.py", ["weights=absent"], "no model 'absent'"),
        ("train.py", ["datamodule=photos", "masks.order=normal", "masks.plans=cifar10"],
         "no plans for the order normal"),
        ("train.py", ["datamodule=folder", "datamodule.images.path=nowhere"], "does not exist"),
        ("train.py", ["datamodule=folder"], "datamodule.images.path has no value: expected"),
        ("train.py", ["datamodule=photos", "datamodule.batch_size=???"],
         "datamodule.batch_size has no value: expected"),
        ("evaluate.py", [], "expected ckpt_path=RUN_DIR or runs="),
        ("evaluate.py", ["weights=cifar10", "datamodule=folder"],
         "datamodule.images.path has no value: expected"),
        ("evaluate.py", ["weights=absent"], "no model 'absent'"),
        ("evaluate.py", ["ckpt_path=nowhere"], "nowhere"),
        ("evaluate.py", ["weights=cifar10", "logger=tensorboard"], "apply to trainings"),
        *((script, ["weights=cifar10", "logger=wandb", *word], message)
          for script in ("train.py", "evaluate.py") for *word, message in (
              ("logger.mode=bad", "logger.mode must be one of offline, online, disabled; got bad"),
              ("logger.project=a/b", "logger.project=a/b is refused by W&B"))),
        ("train.py", ["logger=wandb", "logger.pictures=-1"], "logger.pictures must be 0 or more"),
        *(("evaluate.py", ["weights=cifar10", *words], "has no effect in evaluate.py")
          for words in (["datamodule=photos", "datamodule.eval_limit=4"], ["logger.pictures=2"])),
        ("evaluate.py", ["weights=cifar10", "evaluate.limit=-1"], "limit must be 0 or more"),
        ("evaluate.py", ["weights=cifar10", "evaluate.batch_size=0"], "batch_size must be 1"),
        ("evaluate.py", ["weights=cifar10", "evaluate.sizes=[a,b]", "steps=[2]"],
         "list of numbers above 0"),
        ("evaluate.py", ["weights=cifar10", "evaluate.sizes=[1,2]", "steps=[3]"],
         "expected steps=[2]"),
        ("evaluate.py", ["weights=cifar10", "evaluate.exponent=-3"], "must be 0 or more"),
        ("evaluate.py", ["weights=cifar10", "evaluate.exponent=nan"], "must be 0 or more"),
        ("evaluate.py", ["weights=cifar10", "evaluate.codecs=false"],
         "unknown key evaluate.codecs"),
        ("evaluate.py", ["runs=nowhere"], "no run in nowhere"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_said_in_one_sentence(
    script: str,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = ["datamodule.cache_dir=cache"] if script == "train.py" else []
    monkeypatch.chdir(tmp_path)
    assert message in refused(script, *arguments, *cache, f"hydra.run.dir={tmp_path}")
    assert not (tmp_path / "cache").exists()  # that was before anything expensive


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_a_refusal_is_one_line_and_a_status(script: str, tmp_path: Path) -> None:
    said = run(script, "weights=absent", f"hydra.run.dir={tmp_path}", code=1)
    assert "no model 'absent'" in said.splitlines()[-1] and "Traceback" not in said

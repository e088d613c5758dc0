import json
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize
from omegaconf import OmegaConf
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from italic.config import register
from italic.keys import quoted_paths
from italic.training.sweep import OUTCOME, Sweep, best_runs, printed, table

register()
SWEEPS = sorted((Path(__file__).parents[2] / "sweeps").glob("*.yaml"))


def leave(run_dir: Path, *overrides: str, bpsp: float | None, error: str | None = None) -> None:
    run_dir.mkdir(parents=True)
    outcome = {"overrides": overrides, "bpsp": bpsp, "seconds": 1.5, "error": error}
    (run_dir / OUTCOME).write_text(json.dumps(outcome))


def test_the_table_shows_what_differs_and_the_best_run_first(tmp_path: Path) -> None:
    leave(tmp_path / "0", "seed=1", "model=rnan", "+a.b=x=y", bpsp=4.5)
    leave(tmp_path / "1", "seed=2", "model=rnan", bpsp=None, error="no memory")
    leave(tmp_path / "2", "seed=4", "model=rnan", "+a.b=x=y", bpsp=3.25)
    rows = table(tmp_path)
    assert [row["directory"] for row in rows] == ["2", "0", "1"]
    assert rows[0] == {
        "directory": "2", "seed": "4", "+a.b": "x=y", "bpsp": 3.25, "seconds": 1.5, "error": None
    }  # fmt: skip
    assert rows[2]["+a.b"] is None and rows[2]["error"] == "no memory"
    lines = printed(rows).splitlines()
    places = [line.index(text) for line, text in zip(lines, ["bpsp", "3.25", "4.5"], strict=False)]
    assert len(lines) == 4 and len(set(places)) == 1 and lines[3].endswith("no memory")


def test_runs_in_different_numbers_of_steps_are_not_ranked_against_each_other(
    tmp_path: Path,
) -> None:
    for number, (steps, bpsp) in enumerate([("16", 3.5), ("4", 4.0), ("16", 3.4), ("4", None)]):
        leave(tmp_path / str(number), f"steps={steps}", bpsp=bpsp)
    rows = table(tmp_path)
    assert [row["directory"] for row in rows] == ["1", "3", "2", "0"]
    best = best_runs(rows)
    assert {steps: row["bpsp"] for steps, row in best.items()} == {"4": 4.0, "16": 3.4}


@pytest.mark.parametrize(
    "override, unroll, warns",
    [("steps=1,4", 1, True), ("steps=range(1,9)", 1, True), ("steps=8", 1, False),
     ("steps=1,4", 0, False), ("seed=1,2", 1, False)],
)  # fmt: skip
def test_a_sweep_over_steps_says_that_it_trains_the_same_network(
    override: str, unroll: int, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    tree = {"hydra": {"overrides": {"task": [override]}}, "masks": {"unroll": unroll}}
    Sweep().on_multirun_start(OmegaConf.create(tree))
    assert ("train once" in caplog.text) == warns


def test_columns_that_say_nothing_are_not_printed(tmp_path: Path) -> None:
    leave(tmp_path / "0", "steps=1", bpsp=4.5)
    assert printed(table(tmp_path)).splitlines()[0].split() == ["directory", "bpsp", "seconds"]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_command_of_a_wandb_sweep_composes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = yaml.safe_load(path.read_text())
    assert set(sweep) <= {"program", "method", "metric", "parameters", "command", "name"}
    assert (path.parent.parent / sweep["program"]).is_file()
    assert sweep["method"] in ("grid", "random", "bayes")
    assert sweep["metric"] == {"name": "val/bpsp", "goal": "minimize"}
    macros = ["${env}", "${interpreter}", "${program}", "${args_no_hyphens}"]
    assert sweep["command"][:4] == macros
    ranges = {}
    for name, parameter in sweep["parameters"].items():
        if "values" not in parameter:
            assert parameter["distribution"] == "log_uniform_values"
            assert 0 < parameter["min"] < parameter["max"]
        ranges[name] = parameter.get("values") or [parameter["min"], parameter["max"]]
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    with initialize(version_base="1.3", config_path="../../conf"):
        for place in range(max(map(len, ranges.values()))):  # each value at least once
            chosen = {name: {"value": found[place % len(found)]} for name, found in ranges.items()}
            overrides = create_sweep_command_args({"args": chosen})["args_no_hyphens"]
            overrides += create_sweep_command(list(sweep["command"]))[len(macros) :]
            cfg = compose("train", overrides, return_hydra_config=True)
            assert cfg.hydra.run.dir == "runs/wandb/abc"
            assert cfg.logger.wandb and cfg.logger.mode == "online"


@pytest.mark.parametrize("name", ["1_steps=4", "a b", "steps=1,lr=2", "it's [1]", "plain", "$x"])
def test_the_path_of_a_run_needs_no_quotes_of_hydras(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.mkdir()
    words = quoted_paths([f"ckpt_path={path}", "steps=[1,2]", f"output={path}"])
    assert quoted_paths(words) == words  # processes started by Lightning quote them again
    with initialize(version_base="1.3", config_path="../../conf"):
        cfg = compose("evaluate", words)
    assert cfg.ckpt_path == cfg.output == str(path) and cfg.steps == [1, 2]
    others = ["-m", "weights=[a,b]", "steps=1,2", "--config-dir=conf", f"output={path}/absent"]
    assert quoted_paths(others) == others


def test_no_file_takes_the_place_of_a_plain_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("null", "8", "1e3", "true", "a=b"):
        Path(name).touch()
    words = ["masks.plans=null", "steps=8", "lr_schedule.warmup=1e3", "logger.wandb=true"]
    assert quoted_paths([*words, "ckpt_path=a=b"]) == [*words, "ckpt_path='a=b'"]

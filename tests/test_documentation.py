"""The commands in README and docs/ are run, or at least checked; what they name is there."""

import io
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep
from omegaconf import DictConfig, OmegaConf

from italic import extensions
from italic.cli import main as italic
from italic.cli.arguments import COMMANDS, parser
from italic.coding.model_files.installed import installed_models
from italic.config import register
from tests.runs import ran

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

# Commands that are run, in this order and in a directory of their own, with these settings added.
SHORT = "debug=fast threads=1 logger.pictures=0 trainer.enable_progress_bar=false"
CURVE = "evaluate.curve.timed=1 evaluate.curve.codecs=false"
FEW = f"evaluate.limit=2 {CURVE} evaluate.pictures=1 threads=1"
OWN = "mine/conf model=plain base=pixelated masks=columns datamodule=gradients"  # of extending.md
RUN = {
    "python train.py model=lattice steps=8 datamodule=photos":
        f"{SHORT} model.features=8 hydra.run.dir=RUN_DIR",
    "python evaluate.py ckpt_path=RUN_DIR 'steps=[1,2,4,8,16,32]' evaluate.limit=1000":
        f"{FEW} output=curve",
    "python evaluate.py weights=cifar10": f"{FEW} datamodule=photos steps=[1,2] output=shipped",
    "python -m italic.export RUN_DIR NAME.safetensors": "",
    "italic compress picture.png": "",
    "italic compress photos/ -o coded/ --steps 4": "",
    "italic decompress picture.italic -o back.png": "",
    "italic info picture.italic": "",
    "italic archive photos/ -o photos.italic": "",
    "italic test photos.italic": "",
    "italic models": "",
    "italic compress picture.png --model RUN_DIR/model.safetensors": "--force",
    f"python train.py --config-dir {OWN} steps=4 trainer.max_epochs=3 "
    "hydra.run.dir=runs/mine":
        f"{SHORT} datamodule.images.count=40",
    "python evaluate.py ckpt_path=runs/mine 'steps=[1,4,16]' evaluate.limit=64":
        f"{FEW} output=mine/curve",
    "italic compress picture.png --model runs/mine/model.safetensors": "--force",
    "python evaluate.py --config-dir mine/conf weights=cifar10 datamodule=gradients "
    "'metrics=[ratio,bpp]'":
        f"{FEW} steps=[1] output=mine/metrics",
    "python evaluate.py --config-dir mine/conf weights=cifar10 datamodule=gradients "
    "mode=histogram mode.bins=4":
        "evaluate.limit=2 threads=1 steps=[1] output=mine/mode",
}  # fmt: skip

# Commands that are neither run nor checked, and why.
UNCHECKED = {
    "source .venv/bin/activate": "the shell's",
    "export PYTHONPATH=mine": "the shell's; set for the commands that are run",
    "export ITALIC_IMPORT=my_estimator:my_base:my_order:my_images": "likewise",
    ".venv/bin/pre-commit install": "changes the checkout's hooks",
}


def commands_of(page: Path) -> Iterator[str]:
    """Those in blocks of shell commands, then those in running text and other blocks."""
    text = page.read_text()
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if command := normal(line):
                yield command
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    program = r"(?:python|italic|make|pip|wandb) "
    for command in re.findall(rf"`({program}[^`…]+)`|^    \s*({program}.*)", rest, re.MULTILINE):
        yield normal("".join(command))


def normal(command: str) -> str:
    return shlex.join(shlex.split(command, comments=True))


FOUND = [*dict.fromkeys(command for page in PAGES for command in commands_of(page))]


def composed(script: str, overrides: list[str]) -> DictConfig:
    """The configuration that a command would run with; of a sweep, that of its first run."""
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()  # knows what a glob finds
        first = []
        for override in OverridesParser.create(loader).parse_overrides(overrides):
            if override.is_sweep_override():
                value = override.value()
                begin = value.start if isinstance(value, IntervalSweep) else None
                one = next(override.sweep_string_iterator()) if begin is None else begin
                first.append(f"{override.get_key_element()}={one}")
            else:
                first.append(override.input_line)
        return compose(script.removesuffix(".py"), first, return_hydra_config=True)


def check_hydra(script: str, words: list[str]) -> None:
    """Whether it composes; models it names without a path are installed."""
    overrides = [word for word in words if word not in ("-m", "--cfg", "job")]
    if any(word.startswith("resume=") for word in words):  # the run has this callback
        overrides = ["callbacks=quantised", *overrides]
    cfg = composed(script, overrides)
    installed = {path.stem for path in installed_models()}
    weights = cfg.get("weights")
    several = weights if OmegaConf.is_list(weights) else [weights]
    for name in (*several, cfg.get("masks", {}).get("plans")):
        if name is not None and Path(name).suffix == "" and not name.isupper():
            assert name in installed


def check_benchmark(script: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether its own parser takes the arguments; it goes no further."""

    class Parsed(Exception):
        pass

    parse = ArgumentParser.parse_args

    def parse_alone(*given: Any) -> None:
        parse(*given)
        raise Parsed

    monkeypatch.setattr(ArgumentParser, "parse_args", parse_alone)
    monkeypatch.setattr(sys, "argv", [script, *words])
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    with pytest.raises(Parsed):
        runpy.run_path(str(ROOT / script), run_name="__main__")


def check(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """That a command could be run: its files, presets, keys, options and targets exist."""
    match shlex.split(command):
        case ["python", "train.py" | "evaluate.py" as script, *rest]:
            check_hydra(script, rest)
        case ["python", script, *rest] if script.startswith("benchmarks/"):
            check_benchmark(script, rest, monkeypatch)
        case ["python", script]:
            assert (ROOT / script).is_file()
        case ["python", "-m", "italic.train" | "italic.evaluate" as module, *rest]:
            check_hydra(module.removeprefix("italic."), rest)
        case ["python", "-m", "italic.export", *rest]:
            from italic.export import parser as of_export

            assert of_export().parse_args(rest).file.suffix == ".safetensors"
        case [".venv/bin/python", "-m", "pytest", *paths]:
            assert all((ROOT / path).exists() for path in paths)
        case ["italic", *rest]:
            known = {run.__name__ for run in COMMANDS}
            assert rest[0] in known and (len(rest) == 1 or parser().parse_args(rest))
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        case ["pip", "install", "-c", constraints, "-e", extra]:
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            assert (ROOT / constraints).is_file()
            extras = filter(None, extra.strip(".[]").split(","))  # none: the compressor alone
            assert extra[0] == "." and {*extras} <= {*project["optional-dependencies"]}
        case ["wandb", "sweep", "--project", _, path]:
            sweep = yaml.safe_load((ROOT / path).read_text())
            check_hydra(sweep["program"], [w for w in sweep["command"] if not w.startswith("$")])
        case _:
            pytest.fail("neither run, checked nor listed in UNCHECKED")


LISTED = {normal(command) for command in (*RUN, *UNCHECKED)}


def test_the_tables_list_commands_of_the_documents_alone() -> None:
    assert not LISTED - set(FOUND)


@pytest.mark.parametrize("command", [command for command in FOUND if command not in LISTED])
def test_commands_could_be_run(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check(command, monkeypatch)


@pytest.mark.parametrize(
    "wrong",
    [
        "python train.py model=rnan_tiny",
        "python train.py model.widht=3",
        "python train.py weights=cifar100",
        "python evaluate.py weights=cifar10 evaluate.limits=3",
        "python benchmarks/absent.py",
        "python benchmarks/coder.py --faster",
        "italic squeeze picture.png",
        "make everything",
        "pip install -c constraints.txt -e '.[more]'",
        "rm -r runs",
    ],
)
def test_commands_that_could_not_be_run_are_found(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises((Exception, pytest.fail.Exception, SystemExit)):
        check(wrong, monkeypatch)


def examples(page: str) -> dict[str, str]:
    """Files that a page gives in full, by their paths."""
    text = (ROOT / "docs" / page).read_text()
    return dict(re.findall(r"^`(\S+)`:\n\n```\w+\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In RUN's order and in this process; `tests/test_entry_points.py` has some in their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:mine")  # for processes that compute base codes
    monkeypatch.setenv("ITALIC_IMPORT", "my_estimator:my_base:my_order:my_images")
    monkeypatch.syspath_prepend("mine")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    y, x = np.mgrid[:40, :48]
    gradient = np.stack([90 + x, 60 + y, 120 + (x + y) // 2], axis=-1).astype(np.uint8)
    Path("photos").mkdir()
    for path in ("picture.png", "photos/first.png", "photos/second.png"):
        PIL.Image.fromarray(gradient).save(path)
    for path, text in examples("extending.md").items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)
    for command, more in RUN.items():
        # A new process would know none of the modules that earlier commands enabled.
        monkeypatch.setattr(extensions, "_plugin_modules", {})
        program, *words = shlex.split(f"{command} {more}".replace("RUN_DIR", "runs/short"))
        if program == "italic":
            assert italic(words) == 0, command
        else:
            ran(*words)
    for path in ("picture.png", "photos/first.png"):
        assert np.array_equal(np.asarray(PIL.Image.open(path)), gradient)
    assert np.array_equal(np.asarray(PIL.Image.open("back.png")), gradient)
    for made in ("curve/report.html", "shipped/curve.svg", "mine/curve/curve.csv", "NAME.json"):
        assert Path(made).stat().st_size
    header, _ = Path("mine/metrics/curve.csv").read_text().splitlines()
    assert header.endswith(",ratio,bpp")
    assert len(Path("mine/mode/histogram.csv").read_text().splitlines()) == 1 + 4
    (python,) = re.findall(r"^```python\n(.*?)^```", PAGES[0].read_text(), re.MULTILINE | re.DOTALL)
    jpeg = io.BytesIO()
    PIL.Image.fromarray(gradient).save(jpeg, "JPEG")
    names = {"array": gradient, "jpeg": jpeg.getvalue()}
    exec(python, names)
    assert np.array_equal(names["array"], gradient)
    assert np.array_equal(np.asarray(names["image"]), gradient)


def test_every_key_of_the_configuration_has_a_meaning() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "build.py"))["configuration"]()
    rows = [row.split(" | ") for row in page.splitlines() if row.startswith("| `")]
    keys = [row for row in rows if len(row) == 4]
    assert len(keys) > 80 and not [row[0] for row in keys if row[3] == " |"]


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")), ids=lambda path: path.name)
def test_links_lead_to_files(page: Path) -> None:
    """mkdocs checks those within docs/."""
    for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "method.html").read_text()
    assert "<math" in page and "arithmatex" not in page
    pages = [path.read_text() for path in tmp_path.rglob("*.html")]
    assert not [page for page in pages if re.search(r"(src|@import)[=\s]+.?https?://", page)]


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["cff-version"] == "1.2.0" and citation["authors"] and citation["title"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert all(extra in project["optional-dependencies"] for extra in ("docs", "dev"))

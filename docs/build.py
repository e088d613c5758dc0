"""MkDocs hook: pages generated from the code (configuration, command line, API); MathML."""

from __future__ import annotations

import ast
import dataclasses
import html
import inspect
import io
import re
import sys
import tokenize
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from omegaconf import MISSING

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # takes precedence over an installed ITALIC

from italic import config  # noqa: E402
from italic.cli.arguments import COMMANDS, parser  # noqa: E402

FOLDERS = {  # packages with a page of the API, see mkdocs.yml
    "models": "Models",
    "coding.base_codes": "Base codes",
    "coding.exact": "Exact inference",
    "coding.streams": "Streams",
    "coding.model_files": "Model files",
    "coding.files": "Files",
    "coding.files.container": "Container",
    "coding.files.pictures": "Picture files",
    "compressor": "Compressor",
    "datamodules": "Data",
    "datamodules.images": "Sources of images",
    "measuring": "Measuring",
    "training": "Training",
    "evaluation": "Evaluation",
    "evaluation.modes": "Modes of evaluate.py",
    "processes": "Processes",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are generated from the code."""
    pages = {"configuration.md": configuration(), "command-line.md": command_line(), **api()}
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Convert the formulas marked by arithmatex to MathML, which needs no script and no network."""
    return re.sub(
        r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', _formula, html, flags=re.DOTALL
    )


def _formula(found: re.Match[str]) -> str:
    kind, text = found.groups()
    display = "block" if kind == "div" else "inline"
    formula = convert(html.unescape(text), display=display)
    return f'<div class="formula">{formula}</div>' if kind == "div" else formula


# --- configuration -------------------------------------------------------------------------------


def configuration() -> str:
    """Every key of every group: type, default and meaning, and the choices in conf/."""
    parts = [
        "# Configuration",
        "Every key of `train.py` and `evaluate.py` with its type, default and meaning, generated "
        "from the code and `conf/`. A key of a group is written with its group, "
        "`model.features=96`. `group=choice` selects one of the choices, whose file may set other "
        "defaults (`python train.py --cfg job` prints the resulting configuration). A misspelt key "
        "or a value of the wrong type is refused before any work.",
        "## train.py",
        "The keys in this table, and the groups down to *debug*.",
        _table(config.TrainConfig),
    ]
    groups: list[tuple[str, Any]] = [
        ("model", (config.ModelConfig, config.LatticeConfig)),
        ("base", (config.BPGConfig, config.LadderConfig, config.NoBaseConfig)),
        ("masks", config.MasksConfig),
        ("datamodule", config.DataModuleConfig),
        ("datamodule.images", tuple(config.IMAGES.values())),
        ("training", config.TrainingConfig),
        ("optimiser", tuple(config.OPTIMISERS.values())),
        ("lr_schedule", tuple(config.LR_SCHEDULES.values())),
        ("logger", config.LoggerConfig),
    ]
    for group, schemas in groups:
        alone = isinstance(schemas, tuple) and group != "model"  # a schema for each choice
        parts += [f"## {group}", "" if alone else _choices(group)]
        for schema in schemas if isinstance(schemas, tuple) else (schemas,):
            if isinstance(schemas, tuple):
                parts.append(f"### {_choice_of(schema)}")
            parts += [_description(schema), _table(schema)]
    parts += [
        "## trainer",
        "All arguments of `pytorch_lightning.Trainer` except `logger`, `callbacks` and "
        "`default_root_dir`. Their types are checked, except those of "
        f"{', '.join(f'`{key}`' for key in config.ANY_OF_TRAINER)}, which Lightning checks. The "
        "following defaults differ from Lightning's:",
        _trainer_defaults(),
        "## experiment",
        "Complete configurations: `experiment=NAME`; other settings may be added.",
        _choices("experiment"),
        _choices("experiment/ablation"),
        "## callbacks",
        "Callbacks of Lightning, one or several: `callbacks=[NAME,NAME]`.",
        _choices("callbacks"),
        "## debug",
        "Settings that override all others: `debug=NAME`.",
        _choices("debug"),
        "## evaluate.py",
        "The keys in this table, and the groups `mode`, `datamodule` (to evaluate on other images "
        "than those of the training), `metrics`, `logger` and `evaluate`.",
        _table(config.EvaluateConfig),
        "### mode",
        _choices("mode"),
        "### metrics",
        "Metrics, one or several: `metrics=[NAME,NAME]`.",
        _choices("metrics"),
        "### evaluate",
        _description(config.EvaluationConfig),
        _table(config.EvaluationConfig),
    ]
    modes = get_type_hints(config.EvaluationConfig)
    for mode, schema in modes.items():
        if dataclasses.is_dataclass(schema):
            parts += [f"### evaluate.{mode}", _description(schema), _table(schema)]
    return "\n\n".join(parts)


def _description(schema: type) -> str:
    """The docstring of a schema without the arguments, which are in the table, and the errors."""
    return re.split(r"\n\n(?=Args:|Raises:)", inspect.getdoc(schema) or "")[0]


def _table(schema: type) -> str:
    """The keys of a schema, without those that are separate groups."""
    comments = _comments()
    meanings = _arguments(schema)
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for field in dataclasses.fields(schema):
        if field.name in ("_target_", "images", "mode", *config.CHOICES):  # separate groups
            continue
        if "Config" in str(field.type):  # a separate group too
            continue
        meaning = comments.get((schema.__name__, field.name)) or meanings.get(field.name, "")
        kind = re.sub(r" \| None$", "`<br>or `None", _type(field.type))
        kind = f"`{kind}`".replace("|", "or")
        cells = (f"`{field.name}`", kind.replace("`Any`", "any"), _default(field), meaning)
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) if len(rows) > 2 else ""


def _type(annotation: Any) -> str:
    """A type as it is written in code."""
    if get_origin(annotation) in (Union, UnionType):
        return " | ".join(map(_type, get_args(annotation)))
    if annotation is NoneType:
        return "None"
    named = isinstance(annotation, type) and get_origin(annotation) is None
    text = annotation.__name__ if named else str(annotation)
    return re.sub(r"typing\.Optional\[(\w+)\]", r"\1 | None", text).replace("typing.", "")


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value == MISSING or value is dataclasses.MISSING:
        return "must be given"
    if isinstance(value, float):
        return f"`{value:g}`"
    shown = {None: "null", True: "true", False: "false"}
    if value == {}:
        return "none"
    if isinstance(value, list):
        return f"`[{', '.join('null' if item is None else str(item) for item in value)}]`"
    return f"`{shown[value] if value is None or isinstance(value, bool) else value}`"


def _comments() -> dict[tuple[str, str], str]:
    """The comments of config.py by class and key; they stand above the key, or after it."""
    source = inspect.getsource(config)
    by_line = {
        token.start[0]: (token.string.lstrip("# "), token.line.lstrip().startswith("#"))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found = {}
    for node in ast.parse(source).body:
        for item in node.body if isinstance(node, ast.ClassDef) else ():
            if not isinstance(item, ast.AnnAssign):
                continue
            assert isinstance(item.target, ast.Name)
            lines = []
            line = item.lineno - 1
            while by_line.get(line, ("", False))[1]:
                lines.insert(0, by_line[line][0])
                line -= 1
            if item.end_lineno in by_line:
                lines.append(by_line[item.end_lineno][0])
            found[node.name, item.target.id] = " ".join(lines)
    return found


def _arguments(schema: type) -> dict[str, str]:
    """Descriptions of the arguments, from the docstrings of a schema's constructors."""
    found = {}
    for constructor in getattr(schema, "constructors", ()):
        text = inspect.getdoc(constructor) or ""
        section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
        entries = re.split(r"^    (?=\w+: )", section[1], flags=re.MULTILINE) if section else [""]
        for name, said in (entry.split(": ", 1) for entry in entries[1:]):
            found[name] = " ".join(said.split())
    return found


def _choices(group: str) -> str:
    """The files of a group in conf/ with their first comments."""
    rows = ["| choice | |", "|---|---|"]
    for path in sorted((ROOT / "conf" / group).glob("*.yaml")):
        said = []
        for line in path.read_text().splitlines():
            if not line.startswith("#"):
                break
            if "@package" not in line:
                said.append(line.lstrip("# "))
        rows.append(f"| `{group}={path.stem}` | {' '.join(said)} |")
    if all(row.endswith("|  |") for row in rows[2:]):  # no file has a comment
        return "Choices: " + ", ".join(row.split("|")[1].strip() for row in rows[2:]) + "."
    return "\n".join(rows)


def _choice_of(schema: type) -> str:
    """The files of conf/ that extend a schema."""
    for place, schemas in config.CHOICES.items():
        group = place.replace(".", "/")
        for name, other in schemas.items():
            if other is schema:
                extends = name if group == "model" else f"{name}_schema"
                paths = sorted((ROOT / "conf" / group).glob("*.yaml"))
                return ", ".join(
                    path.stem for path in paths if f"  - {extends}\n" in path.read_text()
                )
    raise KeyError(schema)


def _trainer_defaults() -> str:
    text = (ROOT / "conf" / "trainer" / "default.yaml").read_text()
    rows = ["| key | default |", "|---|---|"]
    rows += [f"| `{key}` | `{value}` |" for key, value in re.findall(r"^(\w+): (.+)$", text, re.M)]
    return "\n".join(rows)


# --- command line and API ------------------------------------------------------------------------


def command_line() -> str:
    """The output of `italic --help` and of the help of each command."""
    text = ["# Command line", "The output of `italic --help` and `italic COMMAND --help`."]
    text.append(f"```text\n{parser().format_help()}```")
    for run in COMMANDS:
        arguments = parser().parse_args([run.__name__, *_inputs(run.__name__)])
        text.append(f"## italic {run.__name__}\n\n```text\n{arguments.parser.format_help()}```")
    return "\n\n".join(text)


def _inputs(command: str) -> list[str]:
    required = {"models": [], "archive": ["DIR", "-o", "OUT"], "extract": ["ARCHIVE", "NAME"]}
    return required.get(command, ["IN"])


def api() -> dict[str, str]:
    """A page for each package in `FOLDERS`, with the docstrings of its modules."""
    pages = {f"api/{name}.md": _modules(f"italic.{name}", title) for name, title in FOLDERS.items()}
    pages["api/index.md"] = _modules("italic", "API")
    return pages


def _modules(package: str, title: str) -> str:
    folder = ROOT / package.replace(".", "/")
    names = [f"{package}.{path.stem}" for path in sorted(folder.glob("*.py"))]
    public = [name for name in names if not name.rpartition(".")[2].startswith("_")]
    doc = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    return "\n\n".join([f"# {title}", doc, *(f"::: {name}" for name in public)])

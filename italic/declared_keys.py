"""The configuration keys that italic/config.py declares, read from source files.

Importing the configuration imports PyTorch and Lightning, which takes seconds. A misspelt key is
refused without them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

Keys = dict[str, "Keys | None"]  # None: anything may follow the key

PACKAGE = Path(__file__).parent
# Arguments of Lightning's Trainer; config.py uses them by this name.
TRAINER = "pl.Trainer", ("pytorch_lightning", "trainer/trainer.py")


@cache
def declared_keys(schema: str) -> Keys:
    """The keys of a schema, a class or variable in italic/config.py, with the keys of its groups.

    The keys of a group with several choices, such as `model`, are those of all choices.
    """
    found = _declarations()[schema]
    if isinstance(found, ast.Call):
        return _of_schema(found)
    keys: Keys = {}
    for base in found.bases:
        if isinstance(base, ast.Call):
            keys |= _of_schema(base)
    for name, annotation in _annotations(found):
        keys[name] = _of_annotation(annotation)
    for group, schemas in _choices().items():
        outer, _, inner = group.rpartition(".")
        if inner in keys and outer in ("", _group_of(schema)):
            keys[inner] = {}
            for choice in schemas:
                keys[inner] |= declared_keys(choice)  # type: ignore[operator]
    return keys


def _group_of(schema: str) -> str:
    """The name of the group of a schema: `datamodule` of DataModuleConfig."""
    return schema.removesuffix("Config").lower()


@cache
def _declarations() -> dict[str, ast.ClassDef | ast.Call]:
    """The classes of config.py, and its variables that are calls of `schema`."""
    found: dict[str, ast.ClassDef | ast.Call] = {}
    for node in _module(PACKAGE / "config.py").body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            found[ast.unparse(node.targets[0])] = node.value
    return found


@cache
def _choices() -> dict[str, list[str]]:
    """The schemas of each group in CHOICES of config.py."""
    dicts = {
        ast.unparse(node.target): node.value
        for node in _module(PACKAGE / "config.py").body
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Dict)
    }
    return {
        ast.literal_eval(group): [ast.unparse(item) for item in dicts[ast.unparse(name)].values]
        for group, name in zip(dicts["CHOICES"].keys, dicts["CHOICES"].values, strict=True)
        if group is not None
    }


def _of_annotation(annotation: ast.expr) -> Keys | None:
    """The keys of the schema in an annotation; None for a type without declared keys."""
    names = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}
    schemas = names & _declarations().keys()
    return declared_keys(schemas.pop()) if schemas else None


def _of_schema(call: ast.Call) -> Keys:
    """The keys of a call of `schema`: the arguments of its constructors."""
    options = {word.arg: word.value for word in call.keywords}
    keys: Keys = {"_target_": None} if "target" in options else {}
    for constructor in call.args[1:]:
        keys |= dict.fromkeys(_arguments(ast.unparse(constructor)))
    left_out = ast.literal_eval(options["leave_out"]) if "leave_out" in options else ()
    return {key: value for key, value in keys.items() if key not in left_out}


def _arguments(constructor: str) -> list[str]:
    """The arguments of a class that config.py imports."""
    found = next(
        node
        for node in _module(_source(constructor)).body
        if isinstance(node, ast.ClassDef) and node.name == constructor.rpartition(".")[2]
    )
    for node in found.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            return [argument.arg for argument in arguments[1:]]
    return [name for name, _ in _annotations(found)]  # of a dataclass


def _source(constructor: str) -> Path:
    """The file that defines a class which config.py imports."""
    if constructor == TRAINER[0]:
        package, path = TRAINER[1]
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"No module named '{package}'", name=package)
        return Path(spec.origin).parent / path
    module = next(
        node.module
        for node in _module(PACKAGE / "config.py").body
        if isinstance(node, ast.ImportFrom)
        and node.module is not None
        and constructor in [alias.name for alias in node.names]
    )
    return PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")


def _annotations(node: ast.ClassDef) -> Iterator[tuple[str, ast.expr]]:
    """Names and types of the fields of a dataclass."""
    for item in node.body:
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        if not ast.unparse(item.annotation).startswith("ClassVar"):
            yield item.target.id, item.annotation


@cache
def _module(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))

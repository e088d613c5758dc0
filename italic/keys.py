"""The words of the command lines of train.py and evaluate.py, checked before slow imports."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path

import yaml

from italic.declared_keys import Keys, declared_keys
from italic.errors import SettingError

PRIMARY = {"TrainConfig": "train.yaml", "EvaluateConfig": "evaluate.yaml"}


def refuse_unknown(words: Sequence[str], schema: str) -> None:
    """Refuse a word KEY=… whose key is unknown; Hydra checks the keys that are not checked here.

    Not checked are words with + or ~, the keys below a user-defined choice of a group, and any key
    if the words name another primary configuration.

    Args:
        words: command-line words.
        schema: class in italic/config.py that declares the keys.

    Raises:
        SettingError: a key is unknown; the message names the nearest one. Or a group has no
            choice, or a key is in a group without a choice, which Hydra would refuse with a
            traceback.
    """
    if any(re.match("-c[np]|--config-(name|path)", word) for word in words):
        return
    declared = declared_keys(schema)
    conf = Path(__file__).parent / "conf"
    groups = {path.name for path in conf.iterdir() if path.is_dir()}
    of_others = {*declared_keys("TrainConfig"), *declared_keys("EvaluateConfig")} - {*declared}
    known = {*declared, "hydra", *(groups - of_others)}
    chosen = [
        found.groups()
        for before, word in pairwise(["", *words])
        if not before.startswith("-")  # otherwise the value of an option
        and (found := re.match(r"(\w+(?:[./@:]\w*)*)=(.*)", word))
    ]
    # A user's YAML file, or a run, may name classes with other keys.
    custom = any(
        (conf / key.replace(".", "/")).is_dir()
        and not (conf / key.replace(".", "/") / f"{value}.yaml").is_file()
        for key, value in chosen
    )
    custom |= any(key == "resume" or key.startswith("hydra.searchpath") for key, _ in chosen)
    custom |= any(re.match(r"\+[\w/@]+=", word) for word in words)  # may be a group
    for key, value in chosen:
        if value in ("", "null") and (conf / key).is_dir():
            raise SettingError(
                f"{key}={value} chooses nothing: expected {key}=NAME with one of "
                f"{_choices(conf / key)}, or no {key}=… for the default"
            )
    defaults = yaml.safe_load((conf / PRIMARY[schema]).read_text())["defaults"]
    default = {
        group: name for each in defaults if isinstance(each, dict) for group, name in each.items()
    }
    unchosen = {group for group, name in default.items() if name is None}
    unchosen -= {word.lstrip("+").partition("=")[0] for word in words}
    for key, _ in chosen:
        first = re.split(r"\W", key)[0]
        if first not in known:
            nearest = get_close_matches(first, known, 1)
            expected = f"did you mean {nearest[0]}?" if nearest else "see docs/training.md"
            raise SettingError(f"unknown key {first}: {expected}")
        if first in unchosen & declared.keys() and "." in key:
            raise SettingError(
                f"{key} is in the group {first}, of which nothing is chosen: expected {first}=NAME "
                f"too, with one of {_choices(conf / first)}"
            )
        if re.fullmatch(r"\w+(\.\w+)+", key) and first != "hydra":
            _refuse_unknown_below(key, declared, custom)


def _choices(group: Path) -> str:
    return ", ".join(sorted(path.stem for path in group.glob("*.yaml")))


def _refuse_unknown_below(key: str, declared: Keys, custom: bool) -> None:
    """Refuse a key in groups, such as trainer.max_epochs, if one of its parts is unknown."""
    parts = key.split(".")
    below: Keys | None = declared
    for place, part in enumerate(parts):
        if below is None or ("_target_" in below and custom):
            return
        if part not in below:
            group = "".join(f"{each}." for each in parts[:place])
            nearest = get_close_matches(part, below, 1)
            expected = f"did you mean {group}{nearest[0]}?" if nearest else "see docs/training.md"
            raise SettingError(f"unknown key {group}{part}: {expected}")
        below = below[part]


def quoted_paths(words: Sequence[str]) -> list[str]:
    """Command-line words with the path of each KEY=PATH quoted, where that path exists.

    Hydra's grammar gives characters such as the second = of ckpt_path=multirun/…/1_steps=4 a
    special meaning.
    """
    return [_quoted(word) for word in words]


def _quoted(word: str) -> str:
    key, _, path = word.partition("=")
    if word.startswith("-") or not path or not os.path.exists(path):
        return word
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    with suppress(HydraException):
        value = OverridesParser.create().parse_override(word).value()
        # Numbers, truth values and null are these, whatever lies in the current folder.
        if value == path or isinstance(value, int | float | None):
            return word
    escaped = path.replace("'", r"\'")
    return f"{key}='{escaped}'"

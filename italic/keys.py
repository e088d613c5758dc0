"""The words of the command lines of train.py and evaluate.py, checked before slow imports."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path

from italic.errors import SettingError

# Keys with another name or in another group than before: old → new.
MOVED = {
    "training.learning_rate": "optimiser.learning_rate",
    "training.body_learning_rate": "optimiser.body_learning_rate",
    "training.weight_decay": "optimiser.weight_decay",
    "training.warmup": "lr_schedule.warmup",
    "training.decay_from": "lr_schedule.decay_from",
    "datamodule.by_heart": "datamodule.validate_on_train",
    "evaluate.timed": "evaluate.curve.timed",
    "evaluate.codecs": "evaluate.curve.codecs",
    "evaluate.pixel": "evaluate.attention.pixel",
    "evaluate.step": "evaluate.attention.step",
    "evaluate.qp": "evaluate.enhance.qp",
    "evaluate.before": "evaluate.ablations.before",
}


def refuse_unknown(words: Sequence[str], schema: str) -> None:
    """Refuse a word KEY=… whose top-level key or group is unknown; Hydra checks all other keys.

    The keys are read from the source of italic/config.py, because importing it takes seconds.

    Args:
        words: command-line words.
        schema: class in italic/config.py that declares the top-level keys.

    Raises:
        SettingError: a key is unknown; the message names the nearest one.
    """
    folder = Path(__file__).parent
    (declared,) = (
        node
        for node in ast.parse((folder / "config.py").read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == schema
    )
    known = {
        item.target.id
        for item in declared.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }
    known |= {"hydra", *(path.name for path in (folder / "conf").iterdir() if path.is_dir())}
    for before, word in pairwise(["", *words]):
        if before.startswith("-"):  # the value of an option
            continue
        found = re.match(r"(\w+)[\w./@:]*=", word)  # without + and ~, which Hydra checks
        if found and found[1] not in known:
            nearest = get_close_matches(found[1], known, 1)
            expected = f"did you mean {nearest[0]}?" if nearest else "see docs/training.md"
            raise SettingError(f"unknown key {found[1]}: {expected}")


def quoted_paths(words: Sequence[str]) -> list[str]:
    """Command-line words with the path of each KEY=PATH quoted, where that path exists.

    Hydra's grammar gives characters such as the second = of ckpt_path=multirun/…/1_steps=4 a
    special meaning.
    """
    return [_quoted(word) for word in words]


def refuse_moved(words: Sequence[str]) -> None:
    """Refuse command-line words with keys that now have another name.

    Raises:
        SettingError: a key of `MOVED`; the message names the new key.
    """
    for word in words:
        old = word.lstrip("+~").partition("=")[0]
        if old in MOVED:
            raise SettingError(f"{old} is now {MOVED[old]}: expected {MOVED[old]}=…")


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

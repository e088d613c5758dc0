"""A first check of the command lines of train.py and evaluate.py, before slow imports."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path

from italic.errors import SettingError


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

"""Modules that are imported only by commands that need them, since each takes 0.1 s or more."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import italic

pytestmark = pytest.mark.slow

# Packages of extras, and those that neither the classical codecs nor an estimator need.
NEVER = {"av", "rich", "sympy", "torch._dynamo", "torch._inductor", "torchvision"}
NEVER |= {"hydra", "omegaconf", "pytorch_lightning", "matplotlib", "skimage", "wandb", "ray"}
ESTIMATOR = {"torch", "numba", "safetensors"}
CODECS = {"PIL", "imagecodecs"}

PROGRAM = """
import contextlib, io, sys
from italic.cli import main
for line in sys.stdin:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main(line.split())
    print(*sorted(set(sys.modules)))
"""


def test_each_command_imports_what_it_needs(tmp_path: Path) -> None:
    """All commands run in one process, each after those that import less."""
    noise = np.random.default_rng(0).integers(0, 9, (32, 32, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "flat.png")
    (tmp_path / "b.italic").write_bytes(italic.compress(noise[:2, :2]))
    commands = ["--help", "compress -o", "info b.italic"]
    commands += ["compress flat.png", "compress a.png", "test a.italic"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(italic.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input="\n".join(commands),
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (tmp_path / "a.italic").is_file(), done.stderr
    imported = [set(line.split()) for line in done.stdout.splitlines()]
    for command, modules in zip(commands, imported, strict=True):
        assert not sorted(modules & NEVER), command
    for modules in imported[:3]:
        assert not sorted(modules & (ESTIMATOR | CODECS))
    assert not sorted(imported[3] & ESTIMATOR), "graphics need only classical codecs"
    assert imported[4] > ESTIMATOR | CODECS
    assert not any(name.startswith("torch.fx.experimental.symbolic") for name in imported[-1])

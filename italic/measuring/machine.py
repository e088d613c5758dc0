"""Description of the machine: processor, libraries and commit of the code."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent.parent


def describe_machine() -> dict[str, str]:
    """Names and values that describe the machine, for reports."""
    return {
        "commit": _commit(),
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "system": platform.platform(),
        "Python": platform.python_version(),
        **{name: version(name) for name in ("torch", "pytorch-lightning", "numpy", "av")},
    }


def _commit() -> str:
    """The commit of the code, with the suffix -dirty after changes; "unknown" without git."""
    if not (ROOT / ".git").exists():  # an installed package may lie in an unrelated repository
        return "unknown"
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

"""The environment of OpenMP's threads, which PyTorch uses; it is read when PyTorch is imported."""

from __future__ import annotations

import os

# Iterations for which a thread waits actively for the others. With libgomp's default, a program on
# a busy machine takes several times as long; on an idle machine it takes as long with both.
SPIN_COUNT = "3000"


def wait_briefly() -> None:
    """Let threads wait actively for a short time only, unless the user has chosen."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)

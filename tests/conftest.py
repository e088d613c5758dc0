"""What tests of several folders share."""

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from italic.processes.cluster import cluster

ROOT = Path(__file__).parents[1]

# A test may take long on a busy machine.
settings.register_profile("italic", deadline=None)
settings.load_profile("italic")

# Processes that compute base codes are forked from one that has imported PyTorch already.
multiprocessing.set_forkserver_preload(["__main__", "italic.datamodules.pairs"])


@pytest.fixture(scope="session")
def ray() -> Iterator[str]:
    """The address of a Ray with two workers."""
    pytest.importorskip("ray", reason="the extra 'scale' (Ray) is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", "1")
        with cluster(None, 2):
            import ray

            yield ray.get_runtime_context().gcs_address

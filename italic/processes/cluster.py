"""Work on a Ray cluster, any worker of which may be killed; Ray is an optional extra."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from italic.errors import SettingError

OBJECT_STORE = 200 * 2**20  # bytes, of a local Ray: what goes through it is small
RETRIES = 3  # of an item whose worker was killed

Item = TypeVar("Item")
Result = TypeVar("Result")


def check_installed(option: str) -> None:
    """Refuse an option that needs Ray where there is none: SettingError."""
    try:
        import ray.data  # noqa: F401
    except ImportError:
        raise SettingError(
            f"{option} needs Ray, which is not installed: expected the extra 'scale', "
            "pip install 'italic[scale]'"
        ) from None


@contextmanager
def cluster(address: str | None, workers: int) -> Iterator[None]:
    """Ray on the cluster with this address; if None, one of this machine alone, for as long.

    A program that has begun Ray keeps its own.

    Raises:
        SettingError: no cluster answers there.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    if ray.is_initialized():
        yield
        return
    chosen: dict[str, Any] = {"address": address}
    if not address:
        chosen = {"address": "local", "num_cpus": workers, "object_store_memory": OBJECT_STORE}
        chosen["include_dashboard"] = False
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**chosen, log_to_driver=False, logging_level=logging.CRITICAL)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise SettingError(f"no Ray can be used at {chosen['address']}: {error}") from error
    finally:
        signal.signal(signal.SIGTERM, handler)  # Ray has put its own there
    try:
        yield
    finally:
        ray.shutdown()


def on_cluster(
    code: Callable[[Item], Result], items: Sequence[Item], workers: int | None
) -> Iterator[Result]:
    """What `code` makes of each item, in any order, by so many workers of one core each.

    None is as many workers as the cluster has cores. `code` is a function of a module, items and
    results can be pickled. An item whose worker is killed is tried again; that of which nothing
    comes after several is left out.

    Raises:
        RuntimeError: what `code` raises, in its words.
    """
    import ray
    import ray.data

    def row(packed: dict[str, Any]) -> dict[str, Any]:
        import torch

        torch.set_num_threads(1)
        try:
            return {"result": pickle.dumps(code(pickle.loads(packed["item"]))), "error": ""}
        except Exception as error:  # which Ray would keep to itself
            return {"result": b"", "error": str(error) or type(error).__name__}

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1
    rows = [{"item": pickle.dumps(item)} for item in items]
    data = ray.data.from_items(rows, override_num_blocks=len(rows))
    with warnings.catch_warnings(action="ignore"):  # max_retries may go, but nothing replaces it
        results = data.map(
            row,
            compute=ray.data.TaskPoolStrategy(size=workers or int(ray.cluster_resources()["CPU"])),
            num_cpus=1,
            max_retries=RETRIES,
        )
    for result in results.iter_rows():
        if result["error"]:
            raise RuntimeError(result["error"])
        yield pickle.loads(result["result"])

"""Fault-tolerant parallel map on a Ray cluster; Ray is an optional dependency."""

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

OBJECT_STORE = 200 * 2**20  # bytes, for a local Ray; items and results are small
RETRIES = 3  # for an item whose worker was killed

Item = TypeVar("Item")
Result = TypeVar("Result")


def check_installed(option: str) -> None:
    """Raise a SettingError if Ray, which the option needs, is not installed."""
    try:
        import ray.data  # noqa: F401
    except ImportError:
        raise SettingError(
            f"{option} needs Ray, which is not installed: expected the extra 'scale', "
            "pip install 'italic[scale]'"
        ) from None


@contextmanager
def cluster(address: str | None, workers: int) -> Iterator[None]:
    """Connect to a Ray cluster for the duration of the context.

    If the program has already initialised Ray, that instance is used and left running.

    Args:
        address: address of the cluster; None starts a local Ray and stops it at the end.
        workers: CPU cores of a local Ray.

    Raises:
        SettingError: there is no cluster at this address, or a local Ray can't be started.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"address": address}
    if not address:
        options = {"address": "local", "num_cpus": workers, "object_store_memory": OBJECT_STORE}
        options["include_dashboard"] = False
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options, log_to_driver=False, logging_level=logging.CRITICAL)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise SettingError(f"Ray can't be used at {options['address']}: {error}") from error
    finally:
        signal.signal(signal.SIGTERM, handler)  # ray.init replaces the handler
    try:
        yield
    finally:
        ray.shutdown()


def on_cluster(
    code: Callable[[Item], Result], items: Sequence[Item], workers: int | None
) -> Iterator[Result]:
    """Apply `code` to each item on the cluster; yield the results in any order.

    An item whose worker was killed is tried again. If it fails after all retries, it has no result.

    Args:
        code: a function that can be pickled, as its results can.
        items: objects that can be pickled.
        workers: number of workers, of one core each; None for one per core of the cluster.

    Raises:
        RuntimeError: `code` raised an exception; the message is that of the exception.
    """
    import ray
    import ray.data

    def row(packed: dict[str, Any]) -> dict[str, Any]:
        import torch

        torch.set_num_threads(1)
        try:
            return {"result": pickle.dumps(code(pickle.loads(packed["item"]))), "error": ""}
        except Exception as error:  # Ray would not pass it on
            return {"result": b"", "error": str(error) or type(error).__name__}

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1
    rows = [{"item": pickle.dumps(item)} for item in items]
    data = ray.data.from_items(rows, override_num_blocks=len(rows))
    with warnings.catch_warnings(
        action="ignore"
    ):  # max_retries is deprecated, but has no successor
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

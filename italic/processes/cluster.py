"""Fault-tolerant parallel map on a Ray cluster; Ray is an optional dependency."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

from italic.errors import SettingError

OBJECT_STORE = 200 * 2**20  # bytes, for a local Ray; items and results are small
RETRIES = 3  # for an item whose worker was killed

Item = TypeVar("Item")
Result = TypeVar("Result")


def check_installed(option: str) -> None:
    """Raise a SettingError if Ray, which the option needs, is not installed."""
    try:
        import ray  # noqa: F401
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
    code: Callable[[Item], Result], items: Iterable[Item], workers: int | None
) -> Iterator[Result]:
    """Apply `code` to each item on the cluster; yield the results in any order.

    At most one item for each worker is in progress: neither items nor results queue up. An item
    whose worker was killed is tried again. If it fails after all retries, it has no result.

    Args:
        code: a function that can be pickled, as its results can.
        items: objects that can be pickled.
        workers: number of workers, of one core each; None for one per core of the cluster.

    Raises:
        RuntimeError: `code` raised an exception; the message is that of the exception.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    task: Any = ray.remote(num_cpus=1, max_retries=RETRIES)(_attempt)
    limit = workers or int(ray.cluster_resources()["CPU"])
    shared, remaining = ray.put(code), iter(items)
    pending: list[Any] = []
    try:
        while True:
            waiting = islice(remaining, limit - len(pending))
            pending += [task.remote(shared, item) for item in waiting]
            if not pending:
                return
            (finished,), pending = ray.wait(pending)
            try:
                result, error = ray.get(finished)
            except RayTaskError:  # an error of `_attempt`
                raise
            except RayError:  # the workers of this item were killed
                continue
            if error:
                raise RuntimeError(error)
            yield result
    finally:
        for reference in pending:
            ray.cancel(reference)


def _attempt(code: Callable[[Item], Result], item: Item) -> tuple[Result | None, str]:
    """In a worker: the result, or the exception's message, since the caller may lack its class."""
    import torch

    torch.set_num_threads(1)
    try:
        return code(item), ""
    except Exception as error:
        return None, str(error) or type(error).__name__

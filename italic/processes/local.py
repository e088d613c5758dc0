"""Work in several processes, any of which may be killed at any time: only this one writes files."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from itertools import islice
from typing import Any

Report = Callable[..., None]  # called with how much is done
Code = Callable[[list[Any]], list[Any]]


def in_processes(
    code: Code, batches: Iterator[list[Any]], number: int, ended: object, report: Report
) -> Generator[Any, None, None]:
    """What `code`, which can be pickled, makes of the items of batches, in their order.

    A batch whose process was killed is tried again, with no other beside it; if that process is
    killed too, `ended` takes the place of what `code` would have made of each item.
    """
    others = set(multiprocessing.active_children())
    waiting: deque[tuple[list[Any], Future[list[Any]]]] = deque()
    pool, done = _pool(number), 0
    try:
        while True:
            for batch in islice(batches, 2 * number - len(waiting)):
                try:
                    future = _submit(pool, code, batch)
                except BrokenProcessPool:
                    pool = _pool(number)
                    future = _submit(pool, code, batch)
                waiting.append((batch, future))
            if not waiting:
                return
            batch, future = waiting.popleft()
            results = [ended] * len(batch)
            try:
                results = future.result()
            except BrokenProcessPool:
                alone = _pool(1)
                with suppress(BrokenProcessPool):
                    results = _submit(alone, code, batch).result()
                alone.shutdown()
            yield from results
            done += len(batch)
            report(done)
    finally:
        for process in set(multiprocessing.active_children()) - others:
            process.kill()


def _pool(number: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(number, context, initializer=_begin, initargs=(number,))


def _submit(pool: ProcessPoolExecutor, code: Code, batch: list[Any]) -> Future[list[Any]]:
    """A process that starts here never sees Ctrl-C, which is for this one, which ends it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        return pool.submit(code, batch)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(number: int) -> None:
    """In a new process: share the cores, and end with the parent, also amid a picture."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // number))
    warnings.simplefilter("ignore")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

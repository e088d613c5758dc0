"""Crash-tolerant pool of local processes; only the parent process writes files."""

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

Report = Callable[..., None]  # progress callback, called with the amount of finished work
Code = Callable[[list[Any]], list[Any]]


def in_processes(
    code: Code, batches: Iterator[list[Any]], number: int, ended: object, report: Report
) -> Generator[Any, None, None]:
    """Apply `code` to batches in several processes; yield the results of the items in order.

    A batch whose process was killed is tried once more, in a separate process. If that process is
    killed too, `ended` is the result of each item of the batch.

    Args:
        code: a function from a batch to a list of results, one for each item; it is pickled.
        batches: lists of items, read as needed.
        number: number of processes.
        ended: the result of an item whose process was killed twice.
        report: called with the number of finished items.
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
    return ProcessPoolExecutor(number, context, initializer=_initialise, initargs=(number,))


def _submit(pool: ProcessPoolExecutor, code: Code, batch: list[Any]) -> Future[list[Any]]:
    """Submit a batch while SIGINT is blocked, so that new processes inherit the blocked signal.

    Ctrl-C is then handled by the parent alone, which ends its processes.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        return pool.submit(code, batch)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _initialise(number: int) -> None:
    """Initialise a worker process: share the cores, and exit at once when the parent ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // number))
    warnings.simplefilter("ignore")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

"""Cases of the fuzzer in worker processes with a limited address space; for Linux."""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path

from italic.coding.files import limited
from tests.fuzzing.corpus import Layer
from tests.fuzzing.damage import Case, damaged
from tests.fuzzing.limits import ADDRESS_SPACE, limits, memory
from tests.fuzzing.opening import OPENERS, Refused

OUTCOMES = ("refused", "same", "other", "too_large", "failed")


@dataclass
class Result:
    """Outcomes of cases; `failures` holds a line of text and the file of each failed case."""

    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    peak: int = 0  # bytes
    failures: list[tuple[str, bytes]] = field(default_factory=list)


def judged(layer: Layer, data: bytes) -> tuple[str, str]:
    """Open a damaged file: the outcome, and the reason if it failed."""
    try:
        found = OPENERS[layer.kind](data)
        refused = False
    except Refused as error:
        found, refused = error.found, True
    except ValueError:
        return "refused", ""
    except (MemoryError, RuntimeError) as error:  # PyTorch raises RuntimeError if out of memory
        memory_ran_out = isinstance(error, MemoryError) or "alloc" in str(error)
        if memory_ran_out and limits(layer.kind, data)[1] > ADDRESS_SPACE // 8:
            return "too_large", ""
        return "failed", f"{type(error).__name__}: {error}"
    except BaseException as error:
        return "failed", f"{type(error).__name__}: {error}"
    if found == layer.truth:
        return "same", ""
    if refused and found.items() <= layer.truth.items():  # type: ignore[attr-defined]
        return "refused", ""
    return ("failed", "a wrong picture") if layer.name == "file" else ("other", "")


def work(connection: Connection, layers: Sequence[Layer]) -> None:
    """Worker process: receives cases; sends outcome, reason, time in seconds, memory in bytes."""
    limit = memory("VmSize") + ADDRESS_SPACE  # in addition to the libraries and the corpus
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # discard the warnings of libpng
    decoders: dict[int, int] = {}  # memory of the JPEG XL process before a case, by process ID
    while True:
        case = connection.recv()
        layer, data = layers[case.layer], damaged(case, layers)
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak
        start = time.perf_counter()
        outcome, reason = judged(layer, data)
        seconds = time.perf_counter() - start
        peak = memory("VmHWM") - before
        if pid := limited.pid():
            peak = max(peak, memory("VmHWM", pid) - decoders.get(pid, 0))
            Path(f"/proc/{pid}/clear_refs").write_text("5")
            decoders = {pid: memory("VmRSS", pid)}
        longest, largest = limits(layer.kind, data)
        if outcome != "failed" and (seconds > longest or peak > largest):
            outcome = "failed"
            reason = f"{seconds:.1f} of {longest:.1f} s, {peak} of {largest} bytes of memory"
        connection.send((outcome, reason, seconds, peak))


class Worker:
    """A worker process and its current case."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = layers
        self.case: Case | None = None
        self.start()

    def start(self) -> None:
        """Start the process by a fork, so that it shares the corpus and the libraries."""
        context = multiprocessing.get_context("fork")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, self.layers), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, case: Case) -> None:
        """Send a case to the process."""
        seconds, _ = limits(self.layers[case.layer].kind, damaged(case, self.layers))
        self.deadline = time.monotonic() + 2 * seconds  # the worker checks the limit itself
        self.case = case
        self.connection.send(case)

    def take(self) -> tuple[str, str, float, int] | None:
        """The result of the case, or None if it is not finished; restart a dead or hung worker."""
        reason = "hung"
        if self.connection.poll():
            try:
                return self.connection.recv()
            except (EOFError, ConnectionResetError):
                self.process.join()
                reason = f"the process died with status {self.process.exitcode}"
        elif time.monotonic() < self.deadline:
            return None
        self.stop()
        self.start()
        return "failed", reason, 0.0, 0

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()


def run(layers: Sequence[Layer], todo: Sequence[Case], workers: int = 1) -> dict[tuple, Result]:
    """Run cases; return the results by layer and damage."""
    results: dict[tuple, Result] = defaultdict(Result)
    remaining = iter(todo)
    pool = [Worker(layers) for _ in range(workers)]
    try:
        busy = pool
        while busy:
            for worker in busy:
                if worker.case is None and (case := next(remaining, None)):
                    worker.give(case)
            busy = [worker for worker in busy if worker.case is not None]
            if busy:
                wait([worker.connection for worker in busy], timeout=1)
            for worker in busy:
                if (report := worker.take()) is not None:
                    note(results, worker, *report)
                    worker.case = None
    finally:
        for worker in pool:
            worker.stop()
    return results


def note(
    results: dict[tuple, Result],
    worker: Worker,
    outcome: str,
    reason: str,
    seconds: float,
    peak: int,
) -> None:
    """Add a case to the results."""
    case = worker.case
    assert case is not None
    layer = worker.layers[case.layer]
    result = results[layer.name, case.damage]
    result.outcomes[outcome] += 1
    result.seconds = max(result.seconds, seconds)
    result.peak = max(result.peak, peak)
    if outcome == "failed":
        line = f"{layer.kind}, {layer.name}, {case.damage}, case {case.number}: {reason}"
        result.failures.append((line, damaged(case, worker.layers)))

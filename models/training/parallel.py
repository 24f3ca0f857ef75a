"""Independent parts of a training in parallel, each in its own thread.

On a CPU, branches that run together compute with one thread each, whatever their number: their
numbers depend neither on the cores of the machine nor on other branches.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

import torch

from bdbench.models import observer
from bdbench.models.plugins.errors import Signal
from bdbench.models.rng import GENERATORS
from bdbench.models.scope import num_threads
from bdbench.models.training.resume import branched

T = TypeVar("T")


def run_parallel(tasks: Sequence[Callable[[], T]], together: bool = True) -> list[T]:
    """Call all `tasks` and return their results in order.

    together: run as many at once as this thread has compute threads; otherwise run one after
        another in this thread

    If a task or this thread raises, the other tasks stop after their current step and the error is
    raised here. Checkpoints and counts are those of one training.

    Raises RuntimeError if parallel tasks drew from a global generator, because their numbers would
    depend on the order of the draws.
    """
    outer, stop, lock = observer.current(), threading.Event(), threading.Lock()

    def branch(task: Callable[[], T], checkpoints: AbstractContextManager[None]) -> T:
        if together:
            torch.set_num_threads(1)
        counter = _Branch(outer, stop, lock)
        with checkpoints, observer.observed_by(counter):
            result = task()
            counter.trained(0)
        return result

    branches: list[Callable[[], T]] = [
        partial(copy_context().run, branch, task, checkpoints)
        for task, checkpoints in zip(tasks, branched(len(tasks)), strict=True)
    ]
    if not together:
        return [run() for run in branches]
    before = GENERATORS.fingerprint()
    # The threads of the pool change the default of later threads; `num_threads` restores it.
    with num_threads(None), ThreadPoolExecutor(torch.get_num_threads()) as pool:
        futures = [pool.submit(run) for run in branches]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            # All are done, unless one has failed.
            results = [future.result() for future in futures if future.done()]
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if GENERATORS.fingerprint() != before:
        raise RuntimeError(
            "parallel tasks draw from a global generator, so their numbers depend on the order of "
            "the draws; draw from context.rng(purpose)"
        )
    return results


class Stopped(Signal):
    """Another branch has failed, or the run is to end."""


class _Branch(observer.Observer):
    """Counts the passes of one branch and reports them to `outer` under a lock. It ignores `watch`
    and `show`, and capturing a step counts as training."""

    def __init__(
        self, outer: observer.Observer, stop: threading.Event, lock: threading.Lock
    ) -> None:
        self.outer, self.stop, self.lock = outer, stop, lock
        self.forwards = self.backwards = 0
        self._reported = (0, 0)

    def forward(self, images: int) -> None:
        self.forwards += images

    def backward(self, images: int) -> None:
        self.backwards += images

    def trained(self, images: int) -> None:
        if self.stop.is_set():
            raise Stopped
        with self.lock:
            self._report()
            self.outer.trained(images)

    def _report(self) -> None:
        forwards, backwards = self._reported
        self._reported = (self.forwards, self.backwards)
        self.outer.forward(self.forwards - forwards)
        self.outer.backward(self.backwards - backwards)

    def counts(self) -> dict[str, Any]:
        return {"forwards": self.forwards, "backwards": self.backwards}

    def resume_from(self, counts: Mapping[str, Any]) -> None:
        self.forwards, self.backwards = counts["forwards"], counts["backwards"]
        with self.lock:
            self._report()
            self.outer.restored()

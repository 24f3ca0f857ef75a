"""Pieces of a training that do not need each other, side by side: each in a thread of its own.

On a processor a branch has one thread to compute with, however many there are: its numbers depend
neither on the cores of the machine nor on what runs beside it.
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
from bdbench.models.rng import GENERATORS
from bdbench.models.scope import num_threads
from bdbench.models.training.resume import branched

T = TypeVar("T")


def run_parallel(works: Sequence[Callable[[], T]], together: bool = True) -> list[T]:
    """What each of `works` returns, in their order.

    As many run at once as this thread may compute with; one after the other, in this thread, where
    they are not to run `together`. When one raises, or this thread does, the others end with their
    current step, and the error is raised here. Checkpoints and counts are those of one training.

    Raises RuntimeError where works that run together have drawn from a global generator: then their
    numbers hang on which of them came first.
    """
    outer, stop, turn = observer.current(), threading.Event(), threading.Lock()

    def branch(work: Callable[[], T], keeping: AbstractContextManager[None]) -> T:
        if together:
            torch.set_num_threads(1)
        looker = _Branch(outer, stop, turn)
        with keeping, observer.observed_by(looker):
            result = work()
            looker.trained(0)
        return result

    keepers = branched(len(works))
    branches: list[Callable[[], T]] = [
        partial(copy_context().run, branch, work, keeping)
        for work, keeping in zip(works, keepers, strict=True)
    ]
    if not together:
        return [run() for run in branches]
    untouched = GENERATORS.fingerprint()
    # The pool's threads change what new threads compute with, and so what comes after it.
    with num_threads(None), ThreadPoolExecutor(torch.get_num_threads()) as pool:
        futures = [pool.submit(run) for run in branches]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            # All are, unless one has failed.
            results = [future.result() for future in futures if future.done()]
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if GENERATORS.fingerprint() != untouched:
        raise RuntimeError(
            "works that run side by side draw from a global generator, in an order that nobody "
            "knows; draw from context.rng(purpose)"
        )
    return results


class Stopped(BaseException):
    """Another branch has failed, or the work is to end. Not an Exception, so that no method takes
    it for its own."""


class _Branch(observer.Observer):
    """Counts for one branch, and tells `outer` in turn with the others. Nothing is watched here,
    and the recording of a step counts as training."""

    def __init__(
        self, outer: observer.Observer, stop: threading.Event, turn: threading.Lock
    ) -> None:
        self.outer, self.stop, self.turn = outer, stop, turn
        self.forwards = self.backwards = 0
        self._told = (0, 0)

    def forward(self, images: int) -> None:
        self.forwards += images

    def backward(self, images: int) -> None:
        self.backwards += images

    def trained(self, images: int) -> None:
        if self.stop.is_set():
            raise Stopped
        with self.turn:
            self._tell()
            self.outer.trained(images)

    def _tell(self) -> None:
        forwards, backwards = self._told
        self._told = (self.forwards, self.backwards)
        self.outer.forward(self.forwards - forwards)
        self.outer.backward(self.backwards - backwards)

    def counts(self) -> dict[str, Any]:
        return {"forwards": self.forwards, "backwards": self.backwards}

    def go_on(self, counts: Mapping[str, Any]) -> None:
        self.forwards, self.backwards = counts["forwards"], counts["backwards"]
        with self.turn:
            self._tell()
            self.outer.found()

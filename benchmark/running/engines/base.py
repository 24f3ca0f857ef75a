"""The interface of engines: an engine gets a cell and returns a `Future` of its `Attempt`.

Progress and warnings go to `WorkerEvents`. The future of a worker that died raises `Died`.
"""

from __future__ import annotations

import os
import signal
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from bdbench.cells.cell import Cell
from bdbench.machine import suspension
from bdbench.running.worker import Attempt, Job, Worker, claiming


class Died(Exception):
    """The process of an attempt died. The message says how, as in "killed (SIGSEGV)"."""


class Unfit(Died):
    """A device cannot run an attempt, and another one may.

    retired: whether the engine no longer uses this place, so that the attempt was no fair one
    """

    def __init__(self, message: str, retired: bool = False) -> None:
        super().__init__(message)
        self.retired = retired


@dataclass(frozen=True)
class WorkerEvents:
    """Callbacks for workers; they may be called in another thread.

    progress: the key of a cell, and forward passes since the last call
    warning: one line
    """

    progress: Callable[[str, int], None]
    warning: Callable[[str], None]


class Engine(ABC):
    """A context manager; at its end nothing runs any more. Ctrl-Z inside it suspends the clock too,
    unless another handler is installed.

    slots: attempts at the same time; they become fewer when a device fails
    """

    slots = 1
    _suspends = False

    @abstractmethod
    def submit(self, cell: Cell, before: int | None, retries: Sequence[str]) -> Future[Attempt]:
        """Attempt a cell under its claim: `claiming` says what `before` is, `Worker.attempt` what
        `retries` are. What this raises ends the attempt, as an error of the future does."""

    def __enter__(self) -> Self:
        self._suspends = _has_default(signal.SIGTSTP)
        if self._suspends:
            signal.signal(signal.SIGTSTP, self._suspend)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._suspends:
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        self.close(kind is not None)

    def signal_cells(self, number: int) -> None:
        """Send a signal to the other processes of this machine that run cells; there are none."""
        return

    def _suspend(self, number: int, frame: Any) -> None:
        """Ctrl-Z reaches the group of this process only, and the cells may have groups of their
        own."""
        self.signal_cells(signal.SIGSTOP)
        suspension.suspend()
        os.kill(os.getpid(), signal.SIGSTOP)
        suspension.resume()
        self.signal_cells(signal.SIGCONT)

    @abstractmethod
    def close(self, broken: bool) -> None:
        """Release all workers.

        broken: whether some may still be running
        """


class InProcess(Engine):
    """Runs cells in this process; an attempt is over when `submit` returns."""

    def __init__(self, job: Job, events: WorkerEvents) -> None:
        self._job, self._events = job, events
        self._worker = Worker(job, events.progress)

    def submit(self, cell: Cell, before: int | None, retries: Sequence[str]) -> Future[Attempt]:
        future: Future[Attempt] = Future()
        job, work = self._job, partial(self._worker.attempt, cell, retries)
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *where: self._events.warning(str(message))
            future.set_result(claiming(job.results, cell.key, before, work, job.suffices))
        return future

    def close(self, broken: bool) -> None:
        """Nothing runs outside of `submit`."""


def _has_default(number: signal.Signals) -> bool:
    """Whether this thread may handle a signal, and nobody else does or ignores it."""
    main = threading.current_thread() is threading.main_thread()
    return main and signal.getsignal(number) is signal.SIG_DFL

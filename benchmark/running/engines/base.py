"""The interface of engines: an engine gets a cell and returns a `Future` of its `Attempt`.

Progress and warnings go to `WorkerEvents`. The future of a worker that died raises `Died`.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Self

from bdbench.cells.cell import Cell
from bdbench.running.worker import Attempt, Job, Worker


class Died(Exception):
    """The process of an attempt died. The message says how, as in "killed (SIGSEGV)"."""


@dataclass(frozen=True)
class WorkerEvents:
    """Callbacks for workers; they may be called in another thread.

    progress: the key of a cell, and forward passes since the last call
    warning: one line
    """

    progress: Callable[[str, int], None]
    warning: Callable[[str], None]


class Engine(ABC):
    """A context manager; at its end nothing runs any more.

    slots: attempts at the same time
    """

    slots = 1

    @abstractmethod
    def submit(self, cell: Cell, before: int | None, retries: Sequence[str]) -> Future[Attempt]:
        """See `Worker.attempt`. What it raises ends the attempt, as an error of the future does."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.close(kind is not None)

    @abstractmethod
    def close(self, broken: bool) -> None:
        """Release all workers.

        broken: whether some may still be running
        """


class InProcess(Engine):
    """Runs cells in this process; an attempt is over when `submit` returns."""

    def __init__(self, job: Job, events: WorkerEvents) -> None:
        self._worker, self._events = Worker(job, events.progress), events

    def submit(self, cell: Cell, before: int | None, retries: Sequence[str]) -> Future[Attempt]:
        future: Future[Attempt] = Future()
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *where: self._events.warning(str(message))
            future.set_result(self._worker.attempt(cell, before, retries))
        return future

    def close(self, broken: bool) -> None:
        """Nothing runs outside of `submit`."""

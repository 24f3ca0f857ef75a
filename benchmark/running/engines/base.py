"""Where attempts at cells are made: an engine is told a cell and gives a `Future` of its `Attempt`.

What else happens is told to `WorkerEvents`. A future whose worker died raises `Died`.
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
    """The process that made an attempt is gone; the message says how."""


@dataclass(frozen=True)
class WorkerEvents:
    """Hears what workers say, perhaps in another thread.

    progress: a cell's key, and forward passes that are done since the last time
    warning: one line
    """

    progress: Callable[[str, int], None]
    warning: Callable[[str], None]


class Engine(ABC):
    """A context manager, at whose end nothing runs any more.

    slots: how many attempts are made at the same time
    """

    slots = 1

    @abstractmethod
    def submit(self, cell: Cell, before: int | None, retries: Sequence[str]) -> Future[Attempt]:
        """See `Worker.attempt`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.close(kind is not None)

    @abstractmethod
    def close(self, broken: bool) -> None:
        """Let go of all workers; `broken` where some may be at work still."""


class InProcess(Engine):
    """This process; an attempt is over when `submit` returns."""

    def __init__(self, job: Job, events: WorkerEvents) -> None:
        self._worker, self._events = Worker(job, events.progress), events

    def submit(self, cell: Cell, before: int | None, retries: Sequence[str]) -> Future[Attempt]:
        future: Future[Attempt] = Future()
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *where: self._events.warning(str(message))
            future.set_result(self._worker.attempt(cell, before, retries))
        return future

    def close(self, broken: bool) -> None:
        """Nothing is at work outside of `submit`."""

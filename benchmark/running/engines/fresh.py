"""Fresh processes of this machine: one for each step of an attempt; see `nursery.py`.

Workers of multiprocessing would import the caller's main module again, which fails for a script
without a main guard.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from bdbench.machine.devices import DeviceFailed
from bdbench.machine.surroundings import working_folder
from bdbench.machine.suspension import now
from bdbench.running.engines.base import Died, Unfit, WorkerEvents
from bdbench.running.engines.nursery import LATE, Task
from bdbench.running.engines.own_nursery import Nursery, nursery
from bdbench.running.preparation import Step
from bdbench.running.worker import Job, Worker
from bdbench.trial.failure import TimeLimit, over_limit


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended on a node of a cluster.

    value: what its last step returned
    error: what was raised, None if nothing was
    """

    value: Any = None
    error: BaseException | None = None

    def get(self) -> Any:
        """The value. Raises the error."""
        if self.error is not None:
            raise self.error
        return self.value


def attempt_here(steps: Sequence[Step]) -> Outcome:
    """Take the steps of an attempt, on a node of a cluster. Warnings go to its log."""
    log = partial(print, file=sys.stderr)
    try:
        return Outcome(last_result(tasks_of(steps), partial(_run, warning=log)))
    except (Exception, TimeLimit) as error:
        return Outcome(error=error)


def last_result(tasks: Sequence[Task], do: Callable[[Task], Any]) -> Any:
    """What the last task returns; those before it make what it shares. Raises `Died`, or what the
    last one raised.

    do: runs a task
    """
    start, (*first, last), resumed = now(), tasks, 0

    def result(task: Task) -> Any:
        spent = now() - start
        return do(replace(task, job=replace(task.job, spent=spent, resumed=resumed)))

    try:
        for task in first:
            resumed = max(resumed, result(task))
    except Died:
        raise
    except Exception:
        # The cell meets what was raised itself, and reports it.
        pass
    return result(last)


def call_in_process(job: Job, call: Callable[[Worker], Any]) -> Any:
    """Call a module's function in a fresh process; returns its result. Raises `Died`, or what it
    raised."""
    return _run(_task(job, call), lambda line: None)


def _run(task: Task, warning: Callable[[str], None]) -> Any:
    """The result of a task whose progress is not followed. Raises as `FreshProcess.run` does."""
    process = FreshProcess()
    try:
        return process.run(task, WorkerEvents(lambda key, work: None, warning))
    finally:
        process.close()


def tasks_of(steps: Iterable[Step]) -> list[Task]:
    """The steps of an attempt as tasks of this process."""
    return [_task(job, call, job.limit) for job, call in steps]


def _task(job: Job, call: Callable[[Worker], Any], limit: float | None = None) -> Task:
    return Task(job, call, limit, dict(os.environ), working_folder(), list(sys.path))


class FreshProcess:
    """The process of one task, which sends events, and its keeper, which gets the task and reports
    the exit code. Raises `Died` if neither can be started."""

    def __init__(self) -> None:
        try:
            self._control, self._from_cell = _forked(nursery())
        except OSError as error:
            raise Died(f"lost at its start: {error.strerror or error}") from error

    def run(self, task: Task, events: WorkerEvents) -> Any:
        """The result of a task. Raises `Died`, `TimeLimit`, or what the task raised."""
        answer: tuple[str, Any] | None = None
        with suppress(OSError):
            self._control.send(task)
        while (message := self._received()) is not None:
            kind, *values = message
            if kind == "progress":
                events.progress(*values)
            elif kind == "warning":
                events.warning(*values)
            else:
                answer = kind, values[0]
        code = None
        with suppress(EOFError, OSError):
            code = self._control.recv()
        if answer is None and code == LATE:
            assert task.limit is not None
            raise over_limit(task.limit)
        if answer is None:
            raise Died(death_of(code))
        kind, value = answer
        if isinstance(value, DeviceFailed):
            raise Unfit(str(value)) from value
        if kind == "raised":
            raise value
        return value

    def _received(self) -> tuple[Any, ...] | None:
        """The next message of the cell; None after the last one."""
        # A dying process may leave half a message.
        with suppress(EOFError, OSError, ValueError):
            message: tuple[Any, ...] = self._from_cell.recv()
            return message
        return None

    def signal(self, number: int) -> None:
        """Let the keeper send a signal to the cell; `run` returns after SIGKILL."""
        with suppress(OSError):
            self._control.send(number)

    def close(self) -> None:
        self._control.close()
        self._from_cell.close()


def death_of(code: int | None) -> str:
    """How a process died, by its exit code; None if its keeper died too."""
    if code is None:
        return "lost"
    if code < 0:
        hint = ", possibly out of memory" if -code == signal.SIGKILL else ""
        return f"killed ({signal.Signals(-code).name}{hint})"
    return f"exited with code {code}"


def _forked(parent: Nursery) -> tuple[Connection, Connection]:
    """The pipes to the keeper and from the process of a task. Raises OSError."""
    control, keepers = multiprocessing.Pipe()
    events, cells = multiprocessing.Pipe(duplex=False)
    with keepers, cells:
        parent.fork(keepers, cells)
    return control, events

"""Cells on this machine, each in a fresh process that ends with it; see `nursery.py`.

Workers of multiprocessing would import the caller's main module again, which fails for a script
without a main guard.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from bdbench.cells.cell import Cell
from bdbench.machine.surroundings import working_folder
from bdbench.running.engines.base import Died, Engine, WorkerEvents
from bdbench.running.engines.nursery import LATE, Task
from bdbench.running.engines.own_nursery import Nursery, nursery
from bdbench.running.preparation import preparations
from bdbench.running.worker import Attempt, Job, Worker, attempted
from bdbench.trial.failure import over_limit


class Processes(Engine):
    """Runs `slots` cells at a time, spread over devices, which are given by name."""

    def __init__(self, job: Job, events: WorkerEvents, slots: int, devices: Sequence[str]) -> None:
        self.slots, self._events = slots, events
        self._tasks: queue.SimpleQueue[tuple[Future[Attempt], list[Task]] | None]
        self._tasks = queue.SimpleQueue()
        # Reentrant, as a signal may come while this thread holds it.
        self._lock, self._closed = threading.RLock(), False
        self._cells: set[_Process] = set()
        self._job = job
        # It imports torch while the first cells are chosen.
        nursery()
        self._threads = [
            threading.Thread(target=self._serve, args=[devices[n % len(devices)]], daemon=True)
            for n in range(slots)
        ]
        for thread in self._threads:
            thread.start()
        self._suspends = _has_default(signal.SIGTSTP)
        if self._suspends:
            signal.signal(signal.SIGTSTP, self._suspend)

    def submit(self, cell: Cell, before: int | None, retries: Sequence[str]) -> Future[Attempt]:
        future: Future[Attempt] = Future()
        first = preparations(self._job, cell)
        own = replace(self._job.narrowed(cell), shares=not first)
        work = partial(attempted, identity=cell.located, before=before, retries=list(retries))
        calls: list[tuple[Job, Callable[[Worker], Any]]] = [*first, (own, work)]
        self._tasks.put((future, [_task(job, call, self._job.limit) for job, call in calls]))
        return future

    def close(self, broken: bool) -> None:
        if self._suspends:
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        with self._lock:
            self._closed = True
            if broken:
                self._signal(signal.SIGKILL)
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def _signal(self, number: int) -> None:
        """Send a signal to all cells."""
        with self._lock:
            for each in self._cells:
                each.signal(number)

    def _suspend(self, number: int, frame: Any) -> None:
        """Ctrl-Z reaches the group of this process only, and the cells have groups of their own."""
        self._signal(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        self._signal(signal.SIGCONT)

    def _serve(self, device: str) -> None:
        """Run one task after the other on a device."""
        while (submitted := self._tasks.get()) is not None:
            future, tasks = submitted
            try:
                attempt = self._attempt(tasks, device)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(attempt)

    def _attempt(self, tasks: Sequence[Task], device: str) -> Attempt:
        """The result of the last task, which comes after its preparations. Raises `Died`, or what
        the attempt raised."""
        start, (*first, last), resumed = time.monotonic(), tasks, 0

        def run(task: Task) -> Any:
            spent = time.monotonic() - start
            job = replace(task.job, device=device, spent=spent, resumed=resumed)
            return self._run(replace(task, job=job))

        try:
            for task in first:
                resumed = max(resumed, run(task))
        except Died:
            raise
        except Exception:
            # The cell meets what was raised itself, and reports it.
            pass
        attempt: Attempt = run(last)
        return attempt

    def _run(self, task: Task) -> Any:
        """Raises `Died`, or what the task raised."""
        with self._lock:
            if self._closed:
                raise Died("stopped")
            process = _start()
            self._cells.add(process)
        try:
            return process.run(task, self._events)
        finally:
            with self._lock:
                self._cells.discard(process)
            process.close()


def _has_default(number: signal.Signals) -> bool:
    """Whether this thread may handle a signal, and nobody else does or ignores it."""
    main = threading.current_thread() is threading.main_thread()
    return main and signal.getsignal(number) is signal.SIG_DFL


def call_in_process(job: Job, call: Callable[[Worker], Any]) -> Any:
    """Call a module's function in a fresh process; returns its result. Raises `Died`, or what it
    raised."""
    process = _start()
    try:
        return process.run(
            _task(job, call), WorkerEvents(lambda key, work: None, lambda line: None)
        )
    finally:
        process.close()


def _start() -> _Process:
    try:
        return _Process(nursery())
    except OSError as error:
        raise Died("lost at its start") from error


def _task(job: Job, call: Callable[[Worker], Any], limit: float | None = None) -> Task:
    return Task(job, call, limit, dict(os.environ), working_folder(), list(sys.path))


class _Process:
    """The process of one cell, which sends events, and its keeper, which gets the task and reports
    the exit code."""

    def __init__(self, parent: Nursery) -> None:
        self._control, keepers = multiprocessing.Pipe()
        self._from_cell, cells = multiprocessing.Pipe(duplex=False)
        with keepers, cells:
            parent.fork(keepers, cells)

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

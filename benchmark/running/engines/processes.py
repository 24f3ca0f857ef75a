"""Cells on this machine, each in a fresh process that ends with it."""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any

from bdbench.cells.cell import Cell
from bdbench.machine import suspension
from bdbench.running.engines.base import Died, Engine, WorkerEvents
from bdbench.running.engines.fresh import FreshProcess, last_result, tasks_of
from bdbench.running.engines.nursery import Task
from bdbench.running.engines.own_nursery import nursery
from bdbench.running.preparation import steps
from bdbench.running.worker import Attempt, Job, attempted


class Processes(Engine):
    """Runs `slots` cells at a time, spread over devices, which are given by name."""

    def __init__(self, job: Job, events: WorkerEvents, slots: int, devices: Sequence[str]) -> None:
        self.slots, self._events = slots, events
        self._tasks: queue.SimpleQueue[tuple[Future[Attempt], list[Task]] | None]
        self._tasks = queue.SimpleQueue()
        # Reentrant, as a signal may come while this thread holds it.
        self._lock, self._closed = threading.RLock(), False
        self._cells: set[FreshProcess] = set()
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
        work = partial(attempted, identity=cell.located, before=before, retries=list(retries))
        self._tasks.put((future, tasks_of(steps(self._job, cell, work))))
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
        suspension.suspend()
        os.kill(os.getpid(), signal.SIGSTOP)
        suspension.resume()
        self._signal(signal.SIGCONT)

    def _serve(self, device: str) -> None:
        """Run one task after the other on a device."""
        while (submitted := self._tasks.get()) is not None:
            future, tasks = submitted
            try:
                attempt = last_result(tasks, partial(self._run, device=device))
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(attempt)

    def _run(self, task: Task, device: str) -> Any:
        """The result of a task on a device. Raises as `FreshProcess.run` does."""
        with self._lock:
            if self._closed:
                raise Died("stopped")
            process = FreshProcess()
            self._cells.add(process)
        try:
            return process.run(replace(task, job=replace(task.job, device=device)), self._events)
        finally:
            with self._lock:
                self._cells.discard(process)
            process.close()


def _has_default(number: signal.Signals) -> bool:
    """Whether this thread may handle a signal, and nobody else does or ignores it."""
    main = threading.current_thread() is threading.main_thread()
    return main and signal.getsignal(number) is signal.SIG_DFL

"""Cells on this machine, each in a fresh process that ends with it."""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from bdbench.cells.cell import Cell
from bdbench.machine.devices import DeviceFull
from bdbench.running.engines.base import Died, Engine, Unfit, WorkerEvents
from bdbench.running.engines.fresh import FreshProcess, last_result, tasks_of
from bdbench.running.engines.nursery import Task
from bdbench.running.engines.own_nursery import nursery
from bdbench.running.preparation import steps
from bdbench.running.worker import Attempt, Job, attempted, claiming


@dataclass(frozen=True)
class _Submitted:
    """An attempt that waits for its turn; key, before: see `claiming`."""

    future: Future[Attempt]
    key: str
    before: int | None
    tasks: Sequence[Task]


class Processes(Engine):
    """Runs `slots` cells at a time, spread over devices, which are given by name. A device that
    fails loses its place, and its cell goes to another."""

    def __init__(self, job: Job, events: WorkerEvents, slots: int, devices: Sequence[str]) -> None:
        self.slots, self._events = slots, events
        self._tasks: queue.SimpleQueue[_Submitted | None]
        self._tasks = queue.SimpleQueue()
        # Reentrant, as a signal may come while this thread holds it.
        self._lock, self._closed = threading.RLock(), False
        self._cells: set[FreshProcess] = set()
        # Keys of cells that have left a full GPU, each of which costs at most one place.
        self._moved: set[str] = set()
        self._job = job
        # It imports torch while the first cells are chosen.
        nursery()
        self._threads = [
            threading.Thread(target=self._serve, args=[devices[n % len(devices)]], daemon=True)
            for n in range(slots)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, cell: Cell, before: int | None, retries: Sequence[str]) -> Future[Attempt]:
        future: Future[Attempt] = Future()
        work = partial(attempted, identity=cell.located, retries=list(retries))
        tasks = tasks_of(steps(self._job, cell, work))
        self._tasks.put(_Submitted(future, cell.key, before, tasks))
        return future

    def close(self, broken: bool) -> None:
        with self._lock:
            self._closed = True
            if broken:
                self.signal_cells(signal.SIGKILL)
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def signal_cells(self, number: int) -> None:
        with self._lock:
            for each in self._cells:
                each.signal(number)

    def _serve(self, device: str) -> None:
        """Run one task after the other on a device."""
        results, suffices = self._job.results, self._job.suffices
        while (each := self._tasks.get()) is not None:
            # The claim covers what is made before the cell, too.
            run = partial(self._run, device=device, key=each.key)
            work = partial(last_result, each.tasks, run)
            try:
                attempt = claiming(results, each.key, each.before, work, suffices)
            except Unfit as error:
                retired = self._retires()
                if isinstance(error.__cause__, DeviceFull):
                    self._moved.add(each.key)
                if retired:
                    now = f"{self.slots} cell{'s' * (self.slots > 1)} at a time now"
                    self._events.warning(f"{error}; the run goes on with {now}")
                each.future.set_exception(Unfit(str(error), retired))
                if retired:
                    return
            except BaseException as error:
                each.future.set_exception(error)
            else:
                each.future.set_result(attempt)

    def _retires(self) -> bool:
        """Whether a place whose device has failed takes no more cells. The last one does, so that
        the cells say what is wrong."""
        with self._lock:
            many = self.slots > 1
            self.slots -= many
        return many

    def _run(self, task: Task, device: str, key: str) -> Any:
        """The result of a task on a device, for the cell with this key. Raises as
        `FreshProcess.run` does."""
        with self._lock:
            if self._closed:
                raise Died("stopped")
            process, movable = FreshProcess(), self.slots > 1
            self._cells.add(process)
        try:
            moved = key in self._moved
            job = replace(task.job, device=device, movable=movable, moved=moved)
            return process.run(replace(task, job=job), self._events)
        finally:
            with self._lock:
                self._cells.discard(process)
            process.close()

"""Cells on this machine, each in a fresh process that ends with it; see `nursery.py`.

The processes of multiprocessing would import the caller's main module again, which a script without
a main guard does not survive.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bdbench.cells.cell import Cell
from bdbench.running.engines.base import Died, Engine, WorkerEvents
from bdbench.running.engines.nursery import Task
from bdbench.running.engines.own_nursery import Nursery, nursery
from bdbench.running.worker import Attempt, Job, Worker, attempted


class Processes(Engine):
    """`slots` cells at a time, spread over devices by their names."""

    def __init__(self, job: Job, events: WorkerEvents, slots: int, devices: Sequence[str]) -> None:
        self.slots, self._events = slots, events
        self._tasks: queue.SimpleQueue[tuple[Future[Attempt], Task] | None] = queue.SimpleQueue()
        self._lock, self._closed = threading.Lock(), False
        self._cells: set[_Process] = set()
        self._job = job
        # Loads while the first cells are chosen.
        nursery()
        self._threads = [
            threading.Thread(target=self._serve, args=[devices[n % len(devices)]], daemon=True)
            for n in range(slots)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, cell: Cell, before: int | None, retries: Sequence[str]) -> Future[Attempt]:
        future: Future[Attempt] = Future()
        call = partial(attempted, identity=cell.located, before=before, retries=list(retries))
        self._tasks.put((future, _task(self._job.narrowed(cell), call)))
        return future

    def close(self, broken: bool) -> None:
        with self._lock:
            self._closed = True
            if broken:
                for each in self._cells:
                    each.end()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def _serve(self, device: str) -> None:
        """Make one attempt after the other on a device, until there is none."""
        while (asked := self._tasks.get()) is not None:
            future, task = asked
            task = replace(task, job=replace(task.job, device=device))
            try:
                future.set_result(self._attempt(task))
            except Exception as error:
                future.set_exception(error)

    def _attempt(self, task: Task) -> Attempt:
        """Raises `Died`, or what the attempt raised."""
        with self._lock:
            if self._closed:
                raise Died("stopped")
            process = _begun()
            self._cells.add(process)
        try:
            made: Attempt = process.run(task, self._events)
            return made
        finally:
            with self._lock:
                self._cells.discard(process)
            process.close()


def apart(job: Job, call: Callable[[Worker], Any]) -> Any:
    """What a call of a function of a module returns that is made in a fresh process. Raises `Died`,
    or what it raised."""
    process = _begun()
    try:
        return process.run(
            _task(job, call), WorkerEvents(lambda key, work: None, lambda line: None)
        )
    finally:
        process.close()


def _begun() -> _Process:
    try:
        return _Process(nursery())
    except OSError as error:
        raise Died("lost while it started") from error


def _task(job: Job, call: Callable[[Worker], Any]) -> Task:
    return Task(job, call, dict(os.environ), _working_folder(), list(sys.path))


class _Process:
    """That of one cell: what it says, and its keeper, which is told what to do and says how it
    ended."""

    def __init__(self, begun: Nursery) -> None:
        self._control, keepers = multiprocessing.Pipe()
        self._talk, cells = multiprocessing.Pipe(duplex=False)
        with keepers, cells:
            begun.fork(keepers, cells)

    def run(self, task: Task, events: WorkerEvents) -> Any:
        """What the call of a task returns. Raises `Died`, or what the call raised."""
        answer: tuple[str, Any] | None = None
        # A process that dies may leave half a message.
        with suppress(EOFError, OSError, ValueError):
            self._control.send(task)
            while True:
                kind, *said = self._talk.recv()
                if kind == "progress":
                    events.progress(*said)
                elif kind == "warning":
                    events.warning(*said)
                else:
                    answer = kind, said[0]
        code = None
        with suppress(EOFError, OSError):
            code = self._control.recv()
        if answer is None:
            raise Died(how(code))
        kind, said = answer
        if kind == "raised":
            raise said
        return said

    def end(self) -> None:
        """Have it killed, at once; `run` then returns."""
        with suppress(OSError):
            self._control.send("end")

    def close(self) -> None:
        self._control.close()
        self._talk.close()


def _working_folder() -> Path | None:
    """None where it was removed."""
    with suppress(OSError):
        return Path.cwd()
    return None


def how(code: int | None) -> str:
    """What an exit code says of a death; None where nobody was left to tell."""
    if code is None:
        return "lost"
    if code < 0:
        hint = ", perhaps for want of memory" if -code == signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{hint}"
    return f"gone with exit code {code}"

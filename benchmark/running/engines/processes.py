"""Several processes of this machine.

Each is a new Python with a pipe. Those of multiprocessing would import the caller's main module
again, which a script without a main guard does not survive.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from multiprocessing.connection import Connection
from typing import Any

from bdbench.cells.cell import Cell
from bdbench.running.engines.base import Died, Ear, Engine
from bdbench.running.worker import Attempt, Job

Words = tuple[dict[str, Any], int | None, list[str]]
"""What a worker is told: a cell by its specs, and what else `Worker.attempt` takes."""


class Processes(Engine):
    """`slots` new processes, each with a `Worker`. One that dies is replaced."""

    def __init__(self, job: Job, ear: Ear, slots: int) -> None:
        self.slots, self._job, self._ear = slots, job, ear
        self._tasks: queue.SimpleQueue[tuple[Future[Attempt], Words] | None] = queue.SimpleQueue()
        self._lock, self._closed = threading.Lock(), False
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(slots)]
        for thread in self._threads:
            thread.start()

    def submit(self, cell: Cell, before: int | None, retries: Sequence[str]) -> Future[Attempt]:
        future: Future[Attempt] = Future()
        self._tasks.put((future, (cell.identity, before, list(retries))))
        return future

    def close(self, broken: bool) -> None:
        with self._lock:
            self._closed = True
            if broken:
                for process in self._processes:
                    process.kill()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        """Hand tasks to a process, one after the other, until there is none."""
        child: _Child | None = None
        while (task := self._tasks.get()) is not None:
            future, words = task
            try:
                child = child or self._start()
                self._wait(child, future, words)
            except (EOFError, OSError):
                code, child = self._end(child), None
                future.set_exception(Died(how(code)))
            except Exception as error:
                future.set_exception(error)
        self._end(child)

    def _wait(self, child: _Child, future: Future[Attempt], words: Words) -> None:
        """Until an attempt is over. Raises EOFError or OSError where its process died."""
        child.pipe.send(words)
        while not future.done():
            kind, *said = child.pipe.recv()
            if kind == "progress":
                self._ear.progress(*said)
            elif kind == "warning":
                self._ear.warning(*said)
            elif kind == "done":
                future.set_result(*said)
            else:
                future.set_exception(*said)

    def _start(self) -> _Child:
        with self._lock:
            if self._closed:
                raise EOFError
            child = _Child(self._job)
            self._processes.add(child.process)
        return child

    def _end(self, child: _Child | None) -> int | None:
        """Let go of a process; returns its exit code, None where there was none."""
        if child is None:
            return None
        child.pipe.close()
        code = child.process.wait()
        with self._lock:
            self._processes.discard(child.process)
        return code


class _Child:
    """A worker process and our end of its pipe."""

    def __init__(self, job: Job) -> None:
        self.pipe: Connection
        self.pipe, theirs = multiprocessing.Pipe()
        # The same modules as here, wherever they were found.
        paths = [path or os.getcwd() for path in sys.path]
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "bdbench.running.engines.child", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))},
        )
        theirs.close()
        self.pipe.send(job)


def how(code: int | None) -> str:
    """What an exit code says of a death."""
    if code is not None and code < 0:
        hint = ", perhaps for want of memory" if -code == signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{hint}"
    return f"gone with exit code {code}"

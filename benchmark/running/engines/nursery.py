"""The process from which those of cells come: `python -m bdbench.running.engines.nursery FD`.

It has loaded what every cell needs and computed nothing, so that it can be forked: a fresh process
for each cell then costs milliseconds and not the seconds that it takes to load torch. FD is its end
of a socket, over which it is sent two pipes for each cell. When the socket breaks, it ends.

nursery ── fork ──> keeper ── fork ──> cell

A keeper waits for its cell, ends whatever the cell has started, and says how the cell ended. It
ends the cell when it is told to, or when the process that asked for the cell is gone.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import pickle
import select
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import psutil

from bdbench.cells.cell import REGISTRIES
from bdbench.machine.system import commit, versions
from bdbench.running.worker import Job, Worker

PAUSE = 0.2
"""Seconds between two reports of a cell's progress."""
LOOK = 0.05
"""Seconds between two looks at a cell, where the system cannot tell when it ends."""
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
"""Of Linux: be killed when the parent is gone; become the parent of what children leave behind."""


@dataclass(frozen=True)
class Task:
    """What a cell's process is to do, and the surroundings of the process that asks for it.

    environment, folder, path: as os.environ, the working folder and sys.path are there
    """

    job: Job
    call: Callable[[Worker], Any]
    environment: Mapping[str, str]
    folder: Path | None
    path: list[str]


class EventSender:
    """Tells the process that asked for a cell; several threads may do so."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()
        self._work, self._told = 0, time.monotonic()

    def say(self, *words: Any) -> None:
        """To a run that is over, nothing: the keeper ends this process in a moment."""
        with suppress(OSError), self._lock:
            self._connection.send(words)

    def progress(self, key: str, work: int) -> None:
        """See `WorkerEvents`; told a few times a second."""
        with self._lock:
            self._work += work
            if time.monotonic() - self._told < PAUSE:
                return
            told, self._work, self._told = self._work, 0, time.monotonic()
        self.say("progress", key, told)

    def warning(self, message: Warning | str, *where: Any) -> None:
        """In place of `warnings.showwarning`."""
        self.say("warning", str(message))


def portable(error: BaseException) -> Exception:
    """The error, or its text where another process could not read it or would end by it."""
    with suppress(Exception):
        if isinstance(error, Exception):
            pickle.loads(pickle.dumps(error))
            return error
    return RuntimeError(f"{type(error).__name__}: {error}")


def work(task: Task, talk: Connection) -> None:
    """What the process of a cell does."""
    sender = EventSender(talk)
    try:
        os.environ.clear()
        os.environ.update(task.environment)
        sys.path[:] = task.path
        if task.folder is not None:
            os.chdir(task.folder)
        warnings.showwarning = sender.warning  # type: ignore[assignment]
        worker = Worker(task.job, sender.progress, isolated=True)
        sender.say("done", task.call(worker))
    except BaseException as error:
        sender.say("raised", portable(error))


def keep(control: Connection, talk: Connection) -> None:
    """What a keeper does."""
    linux(PR_SET_CHILD_SUBREAPER, 1)
    task: Task = control.recv()
    keeper, cell = os.getpid(), os.fork()
    if cell == 0:
        linux(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != keeper:
            os._exit(1)
        control.close()
        work(task, talk)
        flush()
        os._exit(0)
    talk.close()
    told = wait(cell, control)
    code = end_all(cell)
    if not told:
        with suppress(OSError):
            control.send(code)


def wait(cell: int, control: Connection) -> bool:
    """Until a cell ends, or is to: then True."""
    looks = select.poll()
    looks.register(control.fileno(), select.POLLIN)
    try:
        looks.register(os.pidfd_open(cell), select.POLLIN)
        pause = None
    except (AttributeError, OSError):
        pause = 1000 * LOOK
    while True:
        ready = [descriptor for descriptor, _ in looks.poll(pause)]
        if control.fileno() in ready:
            return True
        if ready or os.waitid(os.P_PID, cell, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return False


def end_all(cell: int) -> int:
    """Kill what is left of a cell and of all that it has started. Returns its exit code."""
    code = 0
    with suppress(ChildProcessError):
        while True:
            for left in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    left.kill()
            pid, status = os.wait()
            if pid == cell:
                code = os.waitstatus_to_exitcode(status)
    return code


def linux(option: int, value: int) -> None:
    """Set something for this process where the system knows it."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def flush() -> None:
    """What a plugin printed is not lost with `os._exit`."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()


def preload() -> None:
    """All that every cell would load and look up for itself. Of plugins our own: those of others
    might compute something."""
    # An optimizer imports it when it is made, which takes seconds. What is wrong with it, such as
    # a disk where no file can be removed, is for a cell to say.
    with suppress(Exception):
        importlib.import_module("torch._dynamo")
    commit()
    versions()
    for registry in REGISTRIES.values():
        registry.import_package()


def main() -> NoReturn:
    # Ctrl-C reaches all processes of a terminal; it is for the first to say who stops.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asked = socket.socket(fileno=int(sys.argv[1]))
    preload()
    gc.freeze()
    signal.signal(signal.SIGCHLD, reap)
    while True:
        try:
            message, pipes, *_ = socket.recv_fds(asked, 1, 2)
        except OSError:
            message = b""
        if not message:
            os._exit(0)
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            asked.close()
            with suppress(EOFError, OSError):
                keep(*(Connection(descriptor) for descriptor in pipes))
            os._exit(0)
        for descriptor in pipes:
            os.close(descriptor)


def reap(number: int, frame: Any) -> None:
    """Wait for keepers that are gone, so that what they took counts as taken by this process."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    main()

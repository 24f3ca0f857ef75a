"""Forks the process of each cell: `python -m bdbench.running.engines.nursery FD`.

The nursery has imported what every cell needs and has computed nothing, so that it can be forked: a
fresh process then takes milliseconds instead of the seconds that importing torch takes. FD is its
end of a socket, over which it receives two pipes for each cell. It ends when the socket closes.

nursery ── fork ──> keeper ── fork ──> cell

A keeper waits for its cell, kills whatever the cell has started, and reports how the cell ended. It
passes signals on to the cell, and kills it when it is told to, a few seconds after its limit, or
when the process that asked for the cell is gone.

Each cell is in a process group of its own, so that a signal to its group ends no other. The nursery
and the keepers share a third group.
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
from bdbench.machine import suspension
from bdbench.machine.devices import check_device
from bdbench.machine.system import versions
from bdbench.running.worker import Job, Worker, limited
from bdbench.trial import provenance
from bdbench.trial.failure import TimeLimit

PAUSE = 0.2
"""Seconds between two reports of a cell's progress."""
LOOK = 0.05
"""Seconds between two checks of a cell, on systems without pidfd."""
GRACE = 5.0
"""Seconds after its limit in which a cell may end by itself."""
LATE = 256
"""What a keeper reports in place of an exit code if the cell did not end in time."""
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
"""Linux: be killed when the parent dies; adopt orphans of children."""


@dataclass(frozen=True)
class Task:
    """The work of a cell's process, and the environment of the process that asks for it.

    limit: seconds after which a cell should have ended, None for no limit
    environment, folder, path: os.environ, the working folder and sys.path of that process
    """

    job: Job
    call: Callable[[Worker], Any]
    limit: float | None
    environment: Mapping[str, str]
    folder: Path | None
    path: list[str]


class EventSender:
    """Sends messages to the process that asked for a cell; thread-safe."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()
        self._work, self._sent = 0, time.monotonic()

    def send(self, *message: Any) -> None:
        """Does nothing if the run is over: the keeper then kills this process."""
        with suppress(OSError), self._lock:
            self._connection.send(message)

    def progress(self, key: str, work: int) -> None:
        """See `WorkerEvents`; sent a few times a second."""
        with self._lock:
            self._work += work
            if time.monotonic() - self._sent < PAUSE:
                return
            done, self._work, self._sent = self._work, 0, time.monotonic()
        self.send("progress", key, done)

    def warning(self, message: Warning | str, *where: Any) -> None:
        """Replaces `warnings.showwarning`."""
        self.send("warning", str(message))


def portable(error: BaseException) -> Exception:
    """The error, or its text if it cannot be pickled or is not an Exception."""
    with suppress(Exception):
        if isinstance(error, Exception):
            pickle.loads(pickle.dumps(error))
            return error
    return RuntimeError(f"{type(error).__name__}: {error}")


def work(task: Task, events: Connection) -> None:
    """The process of a cell."""
    sender = EventSender(events)
    try:
        os.environ.clear()
        os.environ.update(task.environment)
        sys.path[:] = task.path
        if task.folder is not None:
            os.chdir(task.folder)
        warnings.showwarning = sender.warning  # type: ignore[assignment]
        worker = Worker(task.job, sender.progress, isolated=True)
        if task.job.movable:
            check_device(worker.harness.device)
        sender.send("done", task.call(worker))
    except BaseException as error:
        sender.send("raised", portable(error))


def keep(control: Connection, events: Connection) -> None:
    """The process of a keeper."""
    linux(PR_SET_CHILD_SUBREAPER, 1)
    suspension.own_clock()
    task: Task = control.recv()
    keeper, cell = os.getpid(), os.fork()
    if cell == 0:
        os.setpgid(0, 0)
        linux(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != keeper:
            os._exit(1)
        control.close()
        work(task, events)
        flush()
        os._exit(0)
    events.close()
    try:
        # What the cell itself does about its limit, a plugin may undo.
        with limited(None if task.limit is None else task.limit + GRACE, task.job.spent):
            ended, late = wait(cell, control), False
    except TimeLimit:
        ended, late = False, True
    code = kill_all(cell)
    if ended or late:
        with suppress(OSError):
            control.send(LATE if late else code)


def wait(cell: int, control: Connection) -> bool:
    """Wait until a cell ends, and pass signals on; False if it should be killed instead."""
    poll = select.poll()
    poll.register(control.fileno(), select.POLLIN)
    try:
        poll.register(os.pidfd_open(cell), select.POLLIN)
        pause = None
    except (AttributeError, OSError):
        pause = 1000 * LOOK
    while True:
        ready = [descriptor for descriptor, _ in poll.poll(pause)]
        if control.fileno() in ready:
            if (number := received(control)) == signal.SIGKILL:
                return False
            if number == signal.SIGSTOP:
                suspension.suspend()
            elif number == signal.SIGCONT:
                suspension.resume()
            with suppress(OSError):
                os.killpg(cell, number)
        elif ready or has_ended(cell):
            return True


def has_ended(cell: int) -> bool:
    """Whether a child has ended; its exit code stays to be read."""
    with suppress(psutil.NoSuchProcess):
        status: str = psutil.Process(cell).status()
        return status == psutil.STATUS_ZOMBIE
    return True


def received(control: Connection) -> int:
    """The signal that the process which asked for the cell sends to it; SIGKILL if it is gone."""
    with suppress(EOFError, OSError):
        number: int = control.recv()
        return number
    return signal.SIGKILL


def kill_all(cell: int) -> int:
    """Kill a cell and all that it has started. Returns its exit code."""
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
    """Call prctl where it exists."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def flush() -> None:
    """Write what a plugin printed; `os._exit` would discard it."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()


def preload() -> None:
    """Import and look up what every cell needs. Of plugins only the built-in ones: others might
    compute something."""
    for registry in REGISTRIES.values():
        registry.import_package()
    # Cells run the code that was imported here, however long the run takes.
    provenance.settle()
    versions()
    # An optimizer imports it, which takes seconds. If that fails, the cell reports it.
    with suppress(Exception):
        importlib.import_module("torch._dynamo")


def main() -> NoReturn:
    # The process that started the run decides what stops. In the background of a terminal, a cell
    # that uses it would stop otherwise.
    for number in (signal.SIGINT, signal.SIGTTIN, signal.SIGTTOU):
        signal.signal(number, signal.SIG_IGN)
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
    """Wait for keepers that have ended, so that their CPU time counts as this process's."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    main()

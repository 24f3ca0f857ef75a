"""What a worker process does: `python -m bdbench.running.engines.child FD`.

FD is its end of a pipe. The first object that comes through is a `Job`; every other one is an
attempt to make. When the pipe breaks, the run is over, however it ended.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import sys
import threading
import time
import warnings
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from bdbench.running.worker import Worker

PAUSE = 0.2
"""Seconds between two reports of a worker's progress."""


class Parent:
    """The process that started this one, to which several threads may talk."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.RLock()
        self._key, self._work, self._told = "", 0, time.monotonic()
        self.asked: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def say(self, *words: Any) -> None:
        """To a run that is over, nothing: this process ends, too, in a moment."""
        with suppress(OSError), self._lock:
            self._connection.send(words)

    def progress(self, key: str, work: int) -> None:
        """See `Ear`; told a few times a second."""
        with self._lock:
            if key != self._key:
                self._key, self._work = key, 0
            self._work += work
            if time.monotonic() - self._told > PAUSE:
                self.say("progress", key, self._work)
                self._work, self._told = 0, time.monotonic()

    def warning(self, message: Warning | str, *where: Any) -> None:
        """In place of `warnings.showwarning`."""
        self.say("warning", str(message))

    def _listen(self) -> None:
        while True:
            try:
                self.asked.put(self._connection.recv())
            except (EOFError, OSError):
                os._exit(1)


def portable(error: Exception) -> Exception:
    """The error, or its text where another process could not read it."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def main() -> None:
    # Ctrl-C reaches all processes of a terminal; it is for the first to say who stops.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = Parent(Connection(int(sys.argv[1])))
    job = parent.asked.get()
    warnings.showwarning = parent.warning  # type: ignore[assignment]
    worker = None
    while True:
        identity, before, retries = parent.asked.get()
        try:
            worker = worker or Worker(job, parent.progress)
            parent.say("done", worker.attempt(worker.cell(identity), before, retries))
        except Exception as error:
            parent.say("raised", portable(error))


if __name__ == "__main__":
    main()

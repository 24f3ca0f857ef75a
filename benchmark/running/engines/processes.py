"""Several processes of this machine, from a pool that outlives its workers (pebble)."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

from pebble import ProcessExpired, ProcessPool

from bdbench.cells.cell import Cell
from bdbench.running.engines.base import Died, Ear, Engine
from bdbench.running.worker import Attempt, Job, Worker

PAUSE = 0.2
"""Seconds between two reports of a worker's progress."""


class Processes(Engine):
    """`slots` new processes, each with a `Worker`. One that dies is replaced."""

    def __init__(self, job: Job, ear: Ear, slots: int) -> None:
        self.slots, self._ear = slots, ear
        key = os.urandom(32)
        self._listener = Listener(authkey=key)
        threading.Thread(target=self._accept, daemon=True).start()
        self._pool = ProcessPool(
            slots,
            initializer=_begin,
            initargs=(job, self._listener.address, key),
            context=multiprocessing.get_context("spawn"),
        )

    def submit(self, cell: Cell, before: int | None, retries: Sequence[str]) -> Future[Attempt]:
        future: Future[Attempt] = Future()

        def over(made: Future[Attempt]) -> None:
            error = made.exception()
            if isinstance(error, ProcessExpired):
                future.set_exception(Died(how(error.exitcode)))
            elif error is not None:
                future.set_exception(error)
            else:
                future.set_result(made.result())

        made = self._pool.schedule(_attempt, (cell, before, list(retries)))
        made.add_done_callback(over)
        return future

    def close(self, broken: bool) -> None:
        if broken:
            self._pool.stop()
        else:
            self._pool.close()
        self._pool.join()
        self._listener.close()

    def _accept(self) -> None:
        """A connection for each worker, so that one that dies while it writes blocks no other."""
        while True:
            try:
                connection = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._hear, args=(connection,), daemon=True).start()

    def _hear(self, connection: Connection) -> None:
        try:
            while True:
                kind, *words = connection.recv()
                (self._ear.progress if kind == "progress" else self._ear.warning)(*words)
        except (EOFError, OSError):
            connection.close()


def how(code: int | None) -> str:
    """What an exit code says of a death."""
    if code is not None and code < 0:
        hint = ", perhaps for want of memory" if -code == signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{hint}"
    return f"gone with exit code {code}"


class _Mouth:
    """Tells an `Ear` in another process."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._key, self._work, self._told = "", 0, time.monotonic()

    def progress(self, key: str, work: int) -> None:
        if key != self._key:
            self._key, self._work = key, 0
        self._work += work
        if time.monotonic() - self._told > PAUSE:
            self._send("progress", key, self._work)
            self._work, self._told = 0, time.monotonic()

    def warning(self, line: str) -> None:
        self._send("warning", line)

    def _send(self, *words: Any) -> None:
        # Where nobody listens, the run is over, and this process, too, in a moment.
        with suppress(OSError):
            self._connection.send(words)


_worker: Worker


def _begin(job: Job, address: str, key: bytes) -> None:
    """What a new process does first."""
    global _worker
    # Ctrl-C reaches all processes of a terminal; it is for the first to say who stops.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow, daemon=True).start()
    mouth = _Mouth(Client(address, authkey=key))
    warnings.showwarning = lambda message, *where: mouth.warning(str(message))
    _worker = Worker(job, mouth.progress)


def _follow() -> None:
    """End this process when that which started it ends, however it does."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _attempt(cell: Cell, before: int | None, retries: list[str]) -> Attempt:
    return _worker.attempt(cell, before, retries)

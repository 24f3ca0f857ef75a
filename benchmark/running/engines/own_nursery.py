"""The nursery of this process. It is loaded beside what this process loads itself, so nothing here
needs torch."""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import threading
from multiprocessing.connection import Connection

from bdbench.machine.threads import short_spin

AT_START = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "CUDA_", "TORCH", "PYTORCH_", "LD_")
"""Beginnings of variables that libraries read when they are loaded."""


class Nursery:
    """See `nursery.py`. It ends when this process does, however that is."""

    def __init__(self, environment: dict[str, str]) -> None:
        ours, theirs = socket.socketpair()
        # The same modules as here, wherever they were found.
        paths = [path or os.curdir for path in sys.path]
        self.environment, self._socket, self._asked = environment, ours, False
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", f"{__package__}.nursery", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env={
                **os.environ,
                **short_spin(os.environ),
                "PYTHONPATH": os.pathsep.join(dict.fromkeys(map(os.path.abspath, paths))),
            },
        )
        theirs.close()

    def fork(self, *pipes: Connection) -> None:
        """Raises OSError where it is gone."""
        self._asked = True
        socket.send_fds(self._socket, [b"."], [pipe.fileno() for pipe in pipes])

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        self._socket.close()
        if not self._asked:
            self._process.kill()
        self._process.wait()


_nursery: Nursery | None = None
_turn = threading.Lock()


def nursery() -> Nursery:
    """That of this process, started anew where it is gone or libraries are to be loaded in other
    surroundings."""
    global _nursery
    read = {name: text for name, text in os.environ.items() if name.startswith(AT_START)}
    with _turn:
        if _nursery is not None and not (_nursery.lives and _nursery.environment == read):
            _nursery.close()
            _nursery = None
        if _nursery is None:
            _nursery = Nursery(read)
        return _nursery


@atexit.register
def _close() -> None:
    if _nursery is not None:
        _nursery.close()

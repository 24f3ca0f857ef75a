"""The nursery of this process. It imports torch while this process does the same, so this module
must not need torch."""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import threading
from multiprocessing.connection import Connection

from bdbench.machine.memory import keep_freed
from bdbench.machine.threads import short_spin

AT_START = (
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "CUDA_", "TORCH", "PYTORCH_", "LD_"),
    *("GLIBC_", "MALLOC_", "ATEN_", "DNNL_", "ONEDNN_", "NVIDIA_"),
)
"""Prefixes of environment variables that libraries read when they are loaded."""


class Nursery:
    """See `nursery.py`. It ends when this process does, even if that is killed."""

    def __init__(self, environment: dict[str, str]) -> None:
        ours, theirs = socket.socketpair()
        # So that it imports the same modules.
        paths = [path or os.curdir for path in sys.path]
        self.environment, self._socket, self._used = environment, ours, False
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", f"{__package__}.nursery", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            # So that a cell that signals its group does not reach this process, nor the nursery.
            process_group=0,
            pass_fds=[theirs.fileno()],
            env={
                **os.environ,
                **short_spin(os.environ),
                **keep_freed(os.environ),
                "PYTHONPATH": os.pathsep.join(dict.fromkeys(map(os.path.abspath, paths))),
            },
        )
        theirs.close()

    def fork(self, *pipes: Connection) -> None:
        """Fork a keeper that uses these pipes. Raises OSError if the nursery has ended."""
        self._used = True
        socket.send_fds(self._socket, [b"."], [pipe.fileno() for pipe in pipes])

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        self._socket.close()
        if not self._used:
            self._process.kill()
        self._process.wait()


_nursery: Nursery | None = None
_turn = threading.Lock()


def nursery() -> Nursery:
    """The nursery of this process. A new one is started if the last one has ended, or if variables
    that libraries read have changed."""
    global _nursery
    environment = {name: text for name, text in os.environ.items() if name.startswith(AT_START)}
    with _turn:
        if _nursery is not None and not (_nursery.lives and _nursery.environment == environment):
            _nursery.close()
            _nursery = None
        if _nursery is None:
            _nursery = Nursery(environment)
        return _nursery


@atexit.register
def _close() -> None:
    if _nursery is not None:
        _nursery.close()

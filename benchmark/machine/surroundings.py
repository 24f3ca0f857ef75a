"""The surroundings of a process: what it passes on to those it starts, and what all its code
shares."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

FOLDER_REMOVED = "the working folder was removed; change to another one"
STREAMS = ("stdin", "stdout", "stderr")


@contextmanager
def surroundings_kept() -> Iterator[None]:
    """Afterwards these are as before: the working folder, environment variables, umask, handlers
    of signals and of warnings, standard streams, recursion limit, torch's threads and its settings
    that change numbers. What the block adds to `sys.path` stays, behind everything else."""
    before, path, depth = _state(), list(sys.path), sys.getrecursionlimit()
    try:
        with warnings.catch_warnings():
            yield
    finally:
        sys.setrecursionlimit(depth)  # first, as the rest needs some
        now = _state()
        for restore, value in before.items():
            if now.get(restore) != value:
                restore(value)
        sys.path[:] = [*path, *(each for each in sys.path if each not in path)]


def working_folder() -> Path | None:
    """None if it was removed."""
    with suppress(OSError):
        return Path.cwd()
    return None


def _state() -> dict[Callable[[Any], object], Any]:
    """What restores each part of the surroundings, and its value."""
    os.umask(umask := os.umask(0o077))
    state: dict[Callable[[Any], object], Any] = {
        os.umask: umask,
        _enter: working_folder(),
        _set_environment: dict(os.environ),
        _set_handlers: {n: signal.getsignal(n) for n in signal.valid_signals()},
        _set_streams: {name: getattr(sys, name) for name in STREAMS},
    }
    if torch := sys.modules.get("torch"):
        # Importing it takes a second.
        from bdbench.machine import numerics

        state |= {torch.set_num_threads: torch.get_num_threads(), **numerics.state()}
    return state


def _enter(folder: Path | None) -> None:
    if folder is not None:
        with suppress(OSError):  # it was removed
            os.chdir(folder)


def _set_environment(environment: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


def _set_handlers(handlers: Mapping[int, Any]) -> None:
    for number, handler in handlers.items():
        # Only the main thread may set one, and only one that Python knows.
        if handler is not None and signal.getsignal(number) != handler:
            with suppress(ValueError):
                signal.signal(number, handler)


def _set_streams(streams: Mapping[str, Any]) -> None:
    for name, stream in streams.items():
        setattr(sys, name, stream)

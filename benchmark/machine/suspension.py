"""A clock that stands still while a run is suspended, as by Ctrl-Z.

A process cannot tell how long it was stopped. The one that stops it counts the seconds, in memory
that both share.
"""

from __future__ import annotations

import mmap
import time


def _counter() -> memoryview[float]:
    """float64 (1,), zero, shared with the processes that are forked later."""
    return memoryview(mmap.mmap(-1, 8)).cast("d")


_lost = _counter()
_since: float | None = None


def now() -> float:
    """Seconds of the system's monotonic clock, without those of suspensions."""
    at = time.monotonic() if _since is None else _since
    return at - _lost[0]


def own_clock() -> None:
    """Share the clock no longer with the process that forked this one."""
    global _lost
    shared, _lost = _lost, _counter()
    _lost[0] = shared[0]


def suspend() -> None:
    """Stop the clock, before this process or those that share the clock are stopped."""
    global _since
    if _since is None:
        _since = time.monotonic()


def resume() -> None:
    """Let the clock go on, before those that share it do."""
    global _since
    if _since is not None:
        _lost[0] += time.monotonic() - _since
        _since = None

"""Locks on cells, so that two runs on one folder never train the same cell at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from bdbench.records.files import path_of
from bdbench.storage.atomic import Unusable


@contextmanager
def claimed(results: Path, key: str) -> Iterator[bool]:
    """Gives True if this process holds the lock of a cell inside the block, False if another one
    does. The system releases the lock of a dead process. Raises `Unusable` where files cannot be
    locked."""
    path = lock_of(results, key)
    # A claim may end in another thread than it began.
    lock = FileLock(path, blocking=False, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Unusable(f"cannot lock {path.name} in {path.parent}: {reason}") from error
    try:
        yield True
    finally:
        # Another run that opened this file finds the record once it has the lock. If it cannot be
        # removed now, the next claim removes it.
        with suppress(OSError):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            lock.release()


def lock_of(results: Path, key: str) -> Path:
    """The file that a claim locks. It exists while a cell runs, and after a kill."""
    return results / "records" / f".{key}.lock"


def stamp(results: Path, key: str) -> int | None:
    """A number that changes when a record is written again; None without a record."""
    try:
        return path_of(results, key).stat().st_mtime_ns
    except OSError:
        return None

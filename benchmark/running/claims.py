"""Who is at a cell: a lock for each, which the system takes back from a dead process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from bdbench.records.files import path_of
from bdbench.storage.atomic import Unusable


@contextmanager
def claimed(results: Path, key: str) -> Iterator[bool]:
    """Whether no other process is at the cell; none can be inside the block. The system takes the
    claim of a dead process back. Raises `Unusable` where there can be no lock."""
    path = lock_of(results, key)
    lock = FileLock(path, blocking=False)
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
        # Whoever waits for this very file finds the record when it has it. A file that stays is
        # removed by the next claim.
        with suppress(OSError):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            lock.release()


def lock_of(results: Path, key: str) -> Path:
    """The file that a claim locks. It is there while a cell is run, and after a kill."""
    return results / "records" / f".{key}.lock"


def stamp(results: Path, key: str) -> int | None:
    """Tells one record of a cell from a later one; None where none can be seen."""
    try:
        return path_of(results, key).stat().st_mtime_ns
    except OSError:
        return None

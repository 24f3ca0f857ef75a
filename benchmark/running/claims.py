"""Who is at a cell: a lock for each, which the system takes back from a dead process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from bdbench.models.plugins.errors import InvalidInput
from bdbench.records.files import path_of


@contextmanager
def claimed(results: Path, key: str) -> Iterator[bool]:
    """Whether no other process is at the cell; none can be inside the block. The system takes the
    claim of a dead process back."""
    path = lock_of(results, key)
    lock = FileLock(path, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    except OSError as error:
        reason = error.strerror or error
        raise InvalidInput(f"cannot write in {path.parent}: {reason}") from error
    try:
        yield True
    finally:
        # Whoever waits for this very file finds the record when it has it.
        path.unlink(missing_ok=True)
        lock.release()


def lock_of(results: Path, key: str) -> Path:
    """The file that a claim locks. It is there while a cell is run, and after a kill."""
    return results / "records" / f".{key}.lock"


def stamp(results: Path, key: str) -> int | None:
    """Tells one record of a cell from a later one; None where there is none."""
    try:
        return path_of(results, key).stat().st_mtime_ns
    except FileNotFoundError:
        return None

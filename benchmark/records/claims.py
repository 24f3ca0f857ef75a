"""Locks on cells, so that two runs on one folder never train the same cell at once."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from bdbench.records.files import path_of
from bdbench.storage.locks import locked


def claimed(results: Path, key: str) -> AbstractContextManager[bool]:
    """The lock of a cell, see `locked`."""
    return locked(lock_of(results, key))


def lock_of(results: Path, key: str) -> Path:
    """The file that a claim locks. It exists while a cell runs, and after a kill."""
    return results / "records" / f".{key}.lock"


def stamp(results: Path, key: str) -> int | None:
    """A number that changes when a record is written again; None without a record."""
    try:
        return path_of(results, key).stat().st_mtime_ns
    except OSError:
        return None

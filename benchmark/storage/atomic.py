"""Files that are either whole or not there. Every write of the harness goes through here."""

from __future__ import annotations

import fcntl
import glob
import os
import uuid
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

from bdbench.models.plugins.errors import InvalidInput


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is either whole or as it was, and remove what writers of it left that were
    killed. Raises `InvalidInput` where it cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        with _temporary(path) as file:
            temporary = Path(file.name)
            try:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise InvalidInput(f"cannot write {path.name} in {path.parent}: {reason}") from error


def check_writable(folder: Path) -> None:
    """Make the folder if need be, and raise `InvalidInput` unless files can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # It has no name, so nothing is left of it whatever happens.
        with TemporaryFile(dir=folder):
            return
    except OSError as error:
        raise InvalidInput(f"cannot write in {folder}: {error.strerror or error}") from error


def _temporary(path: Path) -> BinaryIO:
    """A new file beside `path`, which is locked as long as it is open."""
    while True:
        file = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp").open("xb")
        with suppress(OSError):  # of a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        # Another writer saw it before it was locked.
        file.close()


def _remove_abandoned(path: Path) -> None:
    """Remove the temporary files of `path` that nobody has locked: their writers are dead."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with suppress(OSError), leftover.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()

"""Files that are either whole or not there. Every write of the harness goes through here."""

from __future__ import annotations

import fcntl
import os
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
    """A new file beside `path`, which is locked as long as it is open.

    The first free name is taken, so that whoever writes next meets what a dead writer has left,
    and need not look through the folder.
    """
    number = 0
    while True:
        place = path.with_name(f".{path.name}.{number}.tmp")
        try:
            file = place.open("xb")
        except FileExistsError:
            number += not _removed(place)
            continue
        with suppress(OSError):  # of a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        # Another writer saw it before it was locked.
        file.close()


def _removed(place: Path) -> bool:
    """Remove a temporary file that nobody has locked: its writer is dead."""
    with suppress(OSError), place.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The name may be that of a new file by now.
        if os.path.samestat(os.fstat(file.fileno()), place.stat()):
            place.unlink()
            return True
    return False

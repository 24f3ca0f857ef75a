"""Files that are either whole or not there. Every write of the harness goes through here."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

from bdbench.models.plugins.errors import InvalidInput

TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?:\d{1,6}|[0-9a-f]{32})\.tmp", re.DOTALL)
"""The name of a file that is being written, or whose writer is dead."""


class Unusable(InvalidInput):
    """A file or folder on a disk that is full, fails, or may not be used."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is either whole or as it was, see `written`."""
    with written(path) as file:
        file.write(content)


@contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """What is written to the file of this block is at `path` when the block ends, and nothing is
    changed where it raises. What writers of the path left that were killed is removed. Raises
    `Unusable` where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(path) as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, path)
            except BaseException:
                with suppress(OSError):
                    os.unlink(file.name)
                raise
    except OSError as error:
        reason = error.strerror or error
        raise Unusable(f"cannot write {path.name} in {path.parent}: {reason}") from error


def check_writable(folder: Path) -> None:
    """Make the folder if need be, and raise `Unusable` unless files can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # It has no name, so nothing is left of it whatever happens.
        with TemporaryFile(dir=folder):
            return
    except OSError as error:
        raise Unusable(f"cannot write in {folder}: {error.strerror or error}") from error


def remove_abandoned(folder: Path, name: str | None = None) -> None:
    """Remove temporary files in a folder whose writers are dead: those of one file, or of all where
    the folder is ours alone. Nothing happens where that is not possible."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = TEMPORARY.fullmatch(entry.name)
            ours = found is not None and name in (None, found["name"])
            if ours and entry.is_file(follow_symlinks=False):
                remove_if_abandoned(Path(entry.path))


def remove_if_abandoned(path: Path) -> bool:
    """Remove a temporary file unless somebody has locked it; whether it was removed."""
    with suppress(OSError):
        file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The name may be that of a new file by now.
            if os.path.samestat(os.fstat(file), os.lstat(path)):
                os.unlink(path)
                return True
        finally:
            os.close(file)
    return False


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
            number += not remove_if_abandoned(place)
            continue
        with suppress(OSError):  # of a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        # Another writer saw it before it was locked.
        file.close()

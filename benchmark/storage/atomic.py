"""Files that are either complete or absent. Every write of the harness goes through here."""

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
"""The name of a file that is being written, or whose writer died."""


class Unusable(InvalidInput):
    """A file or folder that cannot be used: the disk is full or fails, or access is denied."""


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the content of a file as a whole or not at all, see `written`."""
    with written(path) as file:
        file.write(content)


@contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """Yields a file whose content replaces `path` when the block ends. If the block raises, nothing
    changes. Temporary files that killed writers of this path left are removed. Raises `Unusable`
    where the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(path) as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, path)
                _sync(path.parent)
            except BaseException:
                with suppress(OSError):
                    os.unlink(file.name)
                raise
    except OSError as error:
        reason = error.strerror or error
        raise Unusable(f"cannot write {path.name} in {path.parent}: {reason}") from error


def _sync(folder: Path) -> None:
    """Let a new name in a folder outlast a power cut, where the system can do that: what the file
    replaces, such as checkpoints, is removed next."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def check_writable(folder: Path) -> None:
    """Create the folder if it is missing. Raises `Unusable` unless files can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # It has no name, so nothing is left behind.
        with TemporaryFile(dir=folder):
            return
    except OSError as error:
        raise Unusable(f"cannot write in {folder}: {error.strerror or error}") from error


def remove_abandoned(folder: Path, name: str | None = None) -> None:
    """Remove temporary files whose writers died from a folder. Errors are ignored.

    name: only the temporary files of this file; None for all, in a folder that is ours alone
    """
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = TEMPORARY.fullmatch(entry.name)
            ours = found is not None and name in (None, found["name"])
            if ours and entry.is_file(follow_symlinks=False):
                remove_if_abandoned(Path(entry.path))


def remove_if_abandoned(path: Path) -> bool:
    """Remove a temporary file unless its writer holds the lock. Returns whether it was removed."""
    with suppress(OSError):
        file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # By now the name may belong to a new file.
            if os.path.samestat(os.fstat(file), os.lstat(path)):
                os.unlink(path)
                return True
        finally:
            os.close(file)
    return False


def _temporary(path: Path) -> BinaryIO:
    """A new file beside `path`, locked while it is open.

    It takes the first free name. So the next writer meets the file of a dead one, without a search
    through the folder.
    """
    number = 0
    while True:
        place = path.with_name(f".{path.name}.{number}.tmp")
        try:
            file = place.open("xb")
        except FileExistsError:
            number += not remove_if_abandoned(place)
            continue
        with suppress(OSError):  # the file system has no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        # Another writer saw it before it was locked.
        file.close()

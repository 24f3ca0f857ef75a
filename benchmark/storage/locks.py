"""Locks that never wait: either this process gets one, or another process has it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from bdbench.storage.atomic import Unusable


def lock_on(path: Path) -> FileLock:
    """The lock of a file, which the system releases when its process dies."""
    # It may be released in another thread. Where the system has no locks, the library would take a
    # file for one, which a dead process leaves behind. In the folder of a group, all have to open
    # the file to find it locked; it is empty.
    return FileLock(path, mode=0o666, thread_local=False, fallback_to_soft=False)


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Gives True if this process holds the lock of a file inside the block, False if another one
    does. The system releases the lock of a dead process. The file exists while it is locked, and
    after a kill. Raises `Unusable` where files cannot be locked."""
    lock = lock_on(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Unusable(f"cannot lock {path.name} in {path.parent}: {reason}") from error
    try:
        yield True
    finally:
        # Another process that opened this file finds the work done once it has the lock. If it
        # cannot be removed now, the next holder removes it.
        with suppress(OSError):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            lock.release()


@contextmanager
def alone_in(folder: Path) -> Iterator[bool]:
    """Gives False if another process is inside such a block for a folder, True otherwise, and where
    folders cannot be locked. The folder is created, and removed if it is empty at the end. Nothing
    else is written, so a kill leaves no file behind."""
    alone = True
    try:
        with ExitStack() as stack:
            with suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
                handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                stack.callback(os.close, handle)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    # Not by closing it alone, as processes forked meanwhile have it open too.
                    stack.callback(fcntl.flock, handle, fcntl.LOCK_UN)
                except BlockingIOError:
                    alone = False
            yield alone
    finally:
        if alone:
            with suppress(OSError):
                folder.rmdir()

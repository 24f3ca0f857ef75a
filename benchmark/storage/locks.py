"""Locks that never wait: either this process gets one, or another process has it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from bdbench.storage.atomic import Unusable
from bdbench.storage.mark import LOCK


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Gives True if this process holds the lock of a file inside the block, False if another one
    does. The system releases the lock of a dead process. The file exists while it is locked, and
    after a kill. Raises `Unusable` where files cannot be locked."""
    # A block may end in another thread than it began.
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
        # Another process that opened this file finds the work done once it has the lock. If it
        # cannot be removed now, the next holder removes it.
        with suppress(OSError):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            lock.release()


@contextmanager
def alone_in(folder: Path) -> Iterator[bool]:
    """Gives False if another process is inside such a block for the folder of checkpoints, True
    otherwise, and where files cannot be locked. The folder is created, and removed if it is empty
    at the end."""
    try:
        with ExitStack() as stack:
            alone = True
            if not folder.is_symlink():
                with suppress(OSError, Unusable):
                    folder.mkdir(parents=True, exist_ok=True)
                    alone = stack.enter_context(locked(folder / LOCK))
            yield alone
    finally:
        with suppress(OSError):
            folder.rmdir()

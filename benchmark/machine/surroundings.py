"""The surroundings of a process that the processes it starts inherit."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def surroundings_kept() -> Iterator[None]:
    """Afterwards the working folder, the environment variables and the number of torch's threads
    are as before. What the block adds to `sys.path` stays, behind everything else."""
    folder, environment, path = working_folder(), dict(os.environ), list(sys.path)
    torch = sys.modules.get("torch")
    threads = torch and torch.get_num_threads()
    try:
        yield
    finally:
        if dict(os.environ) != environment:
            os.environ.clear()
            os.environ.update(environment)
        if folder is not None:
            with suppress(OSError):  # it was removed
                os.chdir(folder)
        sys.path[:] = [*path, *(each for each in sys.path if each not in path)]
        if torch and torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def working_folder() -> Path | None:
    """None if it was removed."""
    with suppress(OSError):
        return Path.cwd()
    return None

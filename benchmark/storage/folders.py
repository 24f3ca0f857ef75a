"""Folders that bdbench uses, the cache and those of data sets, and the space on their disks."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

from rich.filesize import decimal

from bdbench.models.plugins.errors import InvalidInput, require

LITTLE = 10**9
"""Bytes. A run warns where a disk has less left."""


def cache_root() -> Path:
    """`$BDBENCH_CACHE`, else the platform's user cache. Raises `InvalidInput` where neither is
    known."""
    if (named := _named("BDBENCH_CACHE")) is not None:
        return named
    # Imported here: a machine that names its folder need not have it.
    from platformdirs import user_cache_path

    try:
        found = user_cache_path("bdbench")
    except RuntimeError:
        found = Path("~")
    # Older versions return the ~ where no home exists.
    require(found.is_absolute(), "no home folder is known: set BDBENCH_CACHE to a folder")
    return found


def roots(data: Path | None = None, create: bool = False) -> list[Path]:
    """Folders to search, in order: `data`, `$BDBENCH_DATA`, `data` in the cache.

    create: whether `data` may be missing, as a download creates it; else that raises `InvalidInput`
    """
    named = [data and expanded(data), _named("BDBENCH_DATA")]
    require(
        create or named[0] is None or named[0].is_dir(),
        f"there is no folder {data} with data sets; correct it, or download a data set into it "
        "with `bdbench data get`",
    )
    searched = [folder for folder in named if folder is not None]
    return list(dict.fromkeys([*searched, cache_root() / "data"]))


def expanded(path: Path) -> Path:
    """The path with the home folder in place of a leading ~. Raises `InvalidInput` where the home
    folder is not known."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise InvalidInput(f"the home folder in {path} is not known") from error


def free_disk(folder: Path) -> float:
    """Bytes that can be written below a folder, which need not exist yet; infinity where the system
    does not say."""
    whole = folder.absolute()
    # Path.exists would raise below a folder that may not be read.
    existing = next(path for path in (whole, *whole.parents) if os.path.exists(path))
    try:
        return shutil.disk_usage(existing).free
    except OSError:
        return math.inf


def low_disk(*folders: Path) -> str | None:
    """A warning if the disk of one of these folders has less than `LITTLE` bytes left."""
    free = {folder: free_disk(folder) for folder in dict.fromkeys(folders)}
    low = [f"{decimal(int(left))} in {folder}" for folder, left in free.items() if left < LITTLE]
    if not low:
        return None
    return (
        f"little disk space is left: {' and '.join(low)}; free some, or choose other folders with "
        "--results and BDBENCH_CACHE"
    )


def _named(variable: str) -> Path | None:
    """The folder that an environment variable names. Raises `InvalidInput` for text that a shell
    would have changed, as a file of variables for a container keeps it."""
    text = os.environ.get(variable)
    if not text:
        return None
    bare = text == text.strip() and text[0] not in "'\"$" and text[-1] not in "'\""
    require(
        bare and text.isprintable(),
        f"{variable} is {text!r}: write the plain path, without quotes, $, and white space around "
        "it",
    )
    return expanded(Path(text))

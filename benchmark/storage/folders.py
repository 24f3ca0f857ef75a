"""Which folders are used: the cache, and those that may hold data sets."""

from __future__ import annotations

import os
from pathlib import Path

from bdbench.models.plugins.errors import InvalidInput, require


def cache_root() -> Path:
    """`$BDBENCH_CACHE`, else the platform's user cache. Raises `InvalidInput` where none is
    known."""
    if (named := _named("BDBENCH_CACHE")) is not None:
        return named
    # Nobody who names a folder needs it, and not every machine that only computes has it.
    from platformdirs import user_cache_path

    try:
        found = user_cache_path("bdbench")
    except RuntimeError:
        found = Path("~")
    # Older versions give the ~ back where there is no home.
    require(found.is_absolute(), "there is no home folder here: name a folder in BDBENCH_CACHE")
    return found


def roots(data: Path | None = None) -> list[Path]:
    """Folders to search, in order: `data`, `$BDBENCH_DATA`, `data` in the cache."""
    named = [data and expanded(data), _named("BDBENCH_DATA")]
    searched = [folder for folder in named if folder is not None]
    return list(dict.fromkeys([*searched, cache_root() / "data"]))


def expanded(path: Path) -> Path:
    """The path with the home folder for a leading ~, where no shell has put it. Raises
    `InvalidInput` where nobody knows that folder."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise InvalidInput(f"the home folder in {path} is not known") from error


def _named(variable: str) -> Path | None:
    """The folder that an environment variable names."""
    text = os.environ.get(variable)
    return expanded(Path(text)) if text else None

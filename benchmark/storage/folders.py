"""Which folders are used: the cache, and those that may hold data sets."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """`$BDBENCH_CACHE`, else the platform's user cache."""
    if named := os.environ.get("BDBENCH_CACHE"):
        return Path(named)
    # Nobody who names a folder needs it, and not every machine that only computes has it.
    from platformdirs import user_cache_path

    return user_cache_path("bdbench")


def roots(data: Path | None = None) -> list[Path]:
    """Folders to search, in order: `data`, `$BDBENCH_DATA`, `data` in the cache."""
    variable = os.environ.get("BDBENCH_DATA")
    named = [data, Path(variable) if variable else None]
    searched = [folder.expanduser() for folder in named if folder is not None]
    return list(dict.fromkeys([*searched, cache_root() / "data"]))

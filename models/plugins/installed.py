"""Which modules are installed. Such code does not change while it is used."""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
from pathlib import Path

SITES = {"site-packages", "dist-packages"}


def is_installed(module: str, path: Path) -> bool:
    """Whether a module lies where Python installs, or belongs to a distribution in its folder, as
    after `pip install --target`. A distribution that is editable lies elsewhere.

    path: its file, or its folder for a package
    """
    if SITES & {*path.parts}:
        return True
    levels = module.count(".") + (path.name == "__init__.py")
    home = [*path.parents][levels : levels + 1]
    return path.is_absolute() and any(module.partition(".")[0] in _owned(str(f)) for f in home)


@functools.cache
def _owned(folder: str) -> frozenset[str]:
    """The top-level modules of all distributions in a folder. One that is developed there has no
    METADATA."""
    return frozenset(
        inspect.getmodulename(file.parts[0]) or file.parts[0]
        for each in importlib.metadata.distributions(path=[folder])
        if each.read_text("METADATA") is not None
        for file in each.files or ()
    )

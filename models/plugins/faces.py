"""Packages whose names are imported when they are asked for, not before (PEP 562)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazy(
    package: str, homes: Mapping[str, Sequence[str]], packages: Sequence[str] = ()
) -> Callable[[str], Any]:
    """The `__getattr__` of a package.

    homes: names by the module that defines them, relative to the package
    packages: inside of it, which are imported when they are named
    """
    modules = {name: f"{package}.{home}" for home, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name in packages:
            return importlib.import_module(f"{package}.{name}")
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(modules[name]), name)

    return get

"""Packages that import a name on first access (PEP 562)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazy(
    package: str, exports: Mapping[str, Sequence[str]], packages: Sequence[str] = ()
) -> Callable[[str], Any]:
    """The `__getattr__` of a package.

    exports: the names that each module defines, by module, relative to the package
    packages: sub-packages, imported on first access too
    """
    modules = {name: f"{package}.{module}" for module, names in exports.items() for name in names}

    def get(name: str) -> Any:
        if name in packages:
            return importlib.import_module(f"{package}.{name}")
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(modules[name]), name)

    return get

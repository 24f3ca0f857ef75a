"""Code of users that has run in this process. It may have left something behind, such as a hook on
all layers, so what is made afterwards is kept apart from what was made without it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from bdbench.cells.cell import REGISTRIES, Cell, factories
from bdbench.models.plugins.registry import PLUGIN
from bdbench.storage.keys import digest_of
from bdbench.trial import provenance

_ran: set[str] = set()
"""Hashes of the code of plugins that are not built in."""


def enter(cell: Cell, *axes: str) -> None:
    """From now on, code of these plugins of a cell has run."""
    _ran.update(_hashes(cell, axes))


def beside(cell: Cell, axes: Iterable[str]) -> Mapping[str, Any]:
    """A part of the key of what a cell makes in this process: the hashes of the code that has run,
    also that of plugin files that were only imported. It is empty without any.

    axes: of the plugins whose code is in the key anyway
    """
    others = (_imported() | _ran) - _hashes(cell, axes)
    return {"beside": sorted(others)} if others else {}


def _imported() -> set[str]:
    """Hashes of plugin files."""
    return {provenance.hash_of(name) for name in list(sys.modules) if name.startswith(PLUGIN)}


def _hashes(cell: Cell, axes: Iterable[str]) -> set[str]:
    """Those of the code of a cell's plugins, built-in ones excepted."""
    found = set()
    for axis in axes:
        registry = REGISTRIES[axis]
        for factory in factories(axis, getattr(cell, axis)):
            if registry.is_local(factory):
                found.add(digest_of(cell.info[axis].codes[factory].text))
            elif not registry.is_built_in(factory):
                found.add(provenance.hash_of(factory.__module__))
    return found

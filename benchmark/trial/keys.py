"""Keys of cache entries and checkpoints: all that a piece of work depends on, but its data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from bdbench.cells.cell import Cell
from bdbench.machine.system import device_name
from bdbench.trial import provenance


def machine(device: torch.device, threads: int) -> dict[str, Any]:
    """What decides the last bits of a number, beside code and data."""
    return {"torch": torch.__version__, "device": device_name(device), "threads": threads}


def anywhere(key: Mapping[str, Any]) -> dict[str, Any]:
    """A key without its `machine`."""
    return {name: part for name, part in key.items() if name not in ("torch", "device", "threads")}


def attack_key(cell: Cell, here: Mapping[str, Any]) -> dict[str, Any]:
    """Of a poisoned set. One that takes no training is the same on all machines with one torch.

    here: see `machine`
    """
    if cell.attack.trains:
        return _trained_key(cell, here)
    sources = provenance.sources(cell)
    return {
        # An attack draws and selects images with code of `models/`.
        "sources": {axis: sources[axis] for axis in ("training", "attack")},
        "attack": cell.specs["attack"],
        "seed": cell.seed,
        "torch": here["torch"],
    }


def undefended_key(cell: Cell, n: int, here: Mapping[str, Any]) -> dict[str, Any]:
    """Of the n-th undefended network.

    here: see `machine`
    """
    return {"n": n, **_trained_key(cell, here)}


def with_curve(key: Mapping[str, Any], curve: bool) -> dict[str, Any]:
    """Of the checkpoints of a network that is trained with or without a curve. The network is the
    same, but a curve cannot be continued that was not begun."""
    return {**key, "curve": True} if curve else dict(key)


def _trained_key(cell: Cell, here: Mapping[str, Any]) -> dict[str, Any]:
    """Of what is trained before the defense is known."""
    sources = provenance.sources(cell)
    return {
        "sources": {axis: sources[axis] for axis in ("training", "attack", "model")},
        **{axis: cell.specs[axis] for axis in ("attack", "model", "recipe")},
        "seed": cell.seed,
        **here,
    }


def fit_key(cell: Cell, curves: bool) -> dict[str, Any]:
    """Of the work of the defense."""
    return {"cell": cell.key, "sources": provenance.sources(cell), "curves": curves}

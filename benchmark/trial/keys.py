"""Keys of cache entries and checkpoints: all that a piece of work depends on, but its data set."""

from __future__ import annotations

from typing import Any

import torch

from bdbench.cells.cell import Cell
from bdbench.machine.system import device_name
from bdbench.trial import provenance


def machine(device: torch.device, threads: int) -> dict[str, Any]:
    """What decides the last bits of a number, beside code and data."""
    return {"torch": torch.__version__, "device": device_name(device), "threads": threads}


def attack_key(cell: Cell) -> dict[str, Any]:
    """Of a poisoned set."""
    key = {
        "attack": cell.specs["attack"],
        "source": provenance.sources(cell)["attack"],
        "seed": cell.seed,
    }
    if cell.attack.trains:
        key |= {"model": cell.specs["model"], "recipe": cell.specs["recipe"]}
    return key


def undefended_key(cell: Cell, n: int) -> dict[str, Any]:
    """Of the n-th undefended network."""
    sources = provenance.sources(cell)
    return {
        "n": n,
        "sources": {axis: sources[axis] for axis in ("training", "attack", "model")},
        **{axis: cell.specs[axis] for axis in ("attack", "model", "recipe")},
        "seed": cell.seed,
    }


def fit_key(cell: Cell, curves: bool) -> dict[str, Any]:
    """Of the work of the defense."""
    return {"cell": cell.key, "sources": provenance.sources(cell), "curves": curves}

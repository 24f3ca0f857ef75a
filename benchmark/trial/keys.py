"""Keys of cache entries and checkpoints: all that a piece of work depends on, but its data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from bdbench.cells.cell import Cell, is_built_in, recipe_spec
from bdbench.machine.devices import instructions
from bdbench.machine.numerics import unusual
from bdbench.machine.system import device_name
from bdbench.models.training.recipe import Recipe
from bdbench.trial import provenance

TRAINED = ("dataset", "attack", "model")
"""Axes whose plugins decide about what is trained before the defense is known."""
PLACE = ("torch", "device", "threads", "instructions", "numerics", "beside")
"""Parts of a key that say where something was made, see `machine` and `company`."""


def machine(device: torch.device, threads: int) -> dict[str, Any]:
    """What decides the last bits of a number, beside code and data."""
    here: dict[str, Any] = {"torch": torch.__version__, "device": device_name(device)}
    if device.type == "cpu":  # beside a GPU, that of the CPU rounds nothing
        here |= {"threads": threads, "instructions": instructions()}
    return {**here, "numerics": found} if (found := unusual(device)) else here


def anywhere(key: Mapping[str, Any]) -> dict[str, Any]:
    """A key without the machine and the process where something was made."""
    return {name: part for name, part in key.items() if name not in PLACE}


def attack_axes(cell: Cell) -> tuple[str, ...]:
    """Axes whose plugins decide about a poisoned set."""
    return TRAINED if cell.attack.trains else ("dataset", "attack")


def attack_key(cell: Cell, here: Mapping[str, Any]) -> dict[str, Any]:
    """Of a poisoned set. One that takes no training is the same on all machines with one torch.

    here: see `machine`
    """
    if cell.attack.trains:
        return _trained_key(cell, here)
    return {
        # An attack draws and selects images with code of `models/`.
        **_code(cell, attack_axes(cell)),
        "attack": cell.specs["attack"],
        "seed": cell.seed,
        "torch": here["torch"],
    }


def undefended_key(cell: Cell, n: int, here: Mapping[str, Any]) -> dict[str, Any]:
    """Of the n-th undefended network, without the length of stages on lent images, which plain
    training does not read; an attack that trains may.

    here: see `machine`
    """
    recipe = cell.recipe if cell.attack.trains else replace(cell.recipe, updates=Recipe().updates)
    return {"n": n, **_trained_key(cell, here), "recipe": recipe_spec(recipe)}


def with_curve(key: Mapping[str, Any], curve: bool) -> dict[str, Any]:
    """Of the checkpoints of a network that is trained with or without a curve. The network is the
    same, but a curve cannot be continued that was not begun."""
    return {**key, "curve": True} if curve else dict(key)


def _trained_key(cell: Cell, here: Mapping[str, Any]) -> dict[str, Any]:
    """Of what is trained before the defense is known."""
    return {
        **_code(cell, TRAINED),
        **{axis: cell.specs[axis] for axis in ("attack", "model", "recipe")},
        "seed": cell.seed,
        **here,
    }


def _code(cell: Cell, axes: Sequence[str]) -> dict[str, Any]:
    """The code of plugins, and the files that their settings name. The images of a built-in data
    set say all about its code."""
    sources = provenance.sources(cell)
    told = [axis for axis in axes if axis != "dataset" or not is_built_in(cell, axis)]
    files = {axis: list(cell.info[axis].files) for axis in axes if cell.info[axis].files}
    return {
        "sources": {axis: sources[axis] for axis in ("training", *told)},
        **({"files": files} if files else {}),
    }


def fit_key(cell: Cell, curves: bool) -> dict[str, Any]:
    """Of the work of the defense."""
    return {"cell": cell.key, "sources": provenance.sources(cell), "curves": curves}

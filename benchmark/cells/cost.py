"""What cells will cost, in forward passes of one image, before anything runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bdbench.cells.cell import Cell


def work(cell: Cell) -> float:
    """Expected forward passes of one image; a backward pass counts as two."""
    images = cell.dataset.count
    return (cell.attack.cost(cell.recipe) + cell.defense.cost(cell.recipe, images)) * images


Part = tuple[Any, ...]


def shared(cell: Cell) -> dict[Part, float]:
    """The parts of a cell's work that other cells need too, each as `work`: the training of an
    attack, and the networks trained with no defense."""
    origin = (*(spec for axis, spec in cell.specs.items() if axis != "defense"), cell.seed)
    costs = {"attack": cell.attack.cost(cell.recipe)}
    costs |= {f"undefended {n}": 3.0 * cell.recipe.epochs for n in range(cell.defense.undefended)}
    return {(*origin, part): cost * cell.dataset.count for part, cost in costs.items() if cost}


def shares(cells: Iterable[Cell]) -> dict[Cell, float]:
    """The work of each cell where what several need is the first one's alone."""
    done: set[Part] = set()
    found = {}
    for each in cells:
        parts = shared(each)
        found[each] = work(each) - sum(parts[part] for part in parts.keys() & done)
        done |= parts.keys()
    return found

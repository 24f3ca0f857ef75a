"""What cells will cost, in forward passes of one image, before anything runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bdbench.attacks.registry import attacks
from bdbench.cells.cell import Cell, recipe_of
from bdbench.datasets.registry import datasets
from bdbench.defenses.registry import defenses


def work(cell: Cell) -> float:
    """Expected forward passes of one image; a backward pass counts as two."""
    recipe = recipe_of(cell.recipe)
    cost = attacks.build(cell.attack).cost(recipe) + defenses.build(cell.defense).cost(recipe)
    return cost * datasets.build(cell.dataset).count


Part = tuple[Any, ...]


def shared(cell: Cell) -> dict[Part, float]:
    """The parts of a cell's work that other cells need too, each as `work`: the training of an
    attack, and the networks trained with no defense."""
    recipe, count = recipe_of(cell.recipe), datasets.build(cell.dataset).count
    origin = cell.dataset, cell.model, cell.attack, cell.recipe, cell.seed
    networks = range(defenses.build(cell.defense).undefended)
    costs = {"attack": attacks.build(cell.attack).cost(recipe)}
    costs |= {f"undefended {n}": 3.0 * recipe.epochs for n in networks}
    return {(*origin, part): cost * count for part, cost in costs.items() if cost}


def shares(cells: Iterable[Cell]) -> dict[Cell, float]:
    """The work of each cell where what several need is the first one's alone."""
    done: set[Part] = set()
    found = {}
    for each in cells:
        parts = shared(each)
        found[each] = work(each) - sum(parts[part] for part in parts.keys() & done)
        done |= parts.keys()
    return found

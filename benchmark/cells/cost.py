"""What cells will cost, in forward passes of one image, before anything runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from bdbench.cells.cell import Cell
from bdbench.datasets.base import Source
from bdbench.models.networks.given import given
from bdbench.models.plugins.spec import Spec
from bdbench.models.training.loop import ROUNDS

NOTHING: Mapping[Any, float] = MappingProxyType({})


def work(cell: Cell) -> float:
    """Expected forward passes of one image; a backward pass counts as two."""
    images, own = cell.dataset.count, cell.defense.cost(cell.recipe, cell.dataset.count)
    if given(cell.model) is not None:
        own = max(0.0, own - _undefended(cell) * cell.defense.undefended)
    return (cell.attack.cost(cell.recipe) + own) * images


def _undefended(cell: Cell) -> float:
    """Of a network trained with no defense, in forward passes per training image."""
    return 3.0 * cell.recipe.epochs


Part = tuple[Any, ...]


def parts(cell: Cell) -> dict[Part, float]:
    """The pieces of a cell's work, each as `work`: its own, the last, and the `shared` ones."""
    needed = shared(cell)
    return {**needed, own(cell): work(cell) - sum(needed.values())}


def own(cell: Cell) -> Part:
    """What only this cell needs."""
    return (*cell.specs.values(), cell.seed, "fit")


def shared(cell: Cell) -> dict[Part, float]:
    """The parts of a cell's work that other cells need too, each as `work`: the training of an
    attack, and the networks trained with no defense."""
    origin = (*(spec for axis, spec in cell.specs.items() if axis != "defense"), cell.seed)
    costs = {"attack": cell.attack.cost(cell.recipe)}
    if given(cell.model) is None:
        networks = range(cell.defense.undefended)
        costs |= {f"undefended {n}": _undefended(cell) for n in networks}
    return {(*origin, part): cost * cell.dataset.count for part, cost in costs.items() if cost}


def shares(cells: Iterable[Cell], there: Mapping[Part, float] = NOTHING) -> dict[Cell, float]:
    """The work that is left of each cell where what several need is the first one's alone.

    there: what is done of each part
    """
    counted: set[Part] = set()
    found = {}
    for each in cells:
        pieces = parts(each)
        left = (
            max(0.0, cost - there.get(part, 0.0))
            for part, cost in pieces.items()
            if part not in counted
        )
        found[each] = sum(left)
        counted |= pieces.keys()
    return found


def curve_work(cell: Cell, there: Mapping[Part, float] = NOTHING) -> float:
    """Forward passes for the points of a cell's curves: of the training images, and twice the test
    images."""
    images = cell.dataset.count + 2 * tests(cell.dataset)
    networks = [part for part in shared(cell) if str(part[-1]).startswith("undefended")]
    # One that is there brings its curve, and a defense that begins with one tunes it.
    points = 0 if not networks or networks[0] in there else cell.recipe.epochs
    if not Spec.of(cell.specs["defense"]).is_none:
        epochs = math.ceil(parts(cell)[own(cell)] / cell.dataset.count / 3)
        points += ROUNDS if networks else min(epochs, cell.recipe.epochs)
    return float(points * images)


def tests(source: Source) -> int:
    """Number of test images; as many as for training where a source does not say."""
    size: int = getattr(source, "test_images", getattr(source, "test_size", source.count))
    return size

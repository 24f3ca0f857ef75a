"""What cells will cost, in forward passes of one image, before anything runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from bdbench.cells.cell import Cell
from bdbench.datasets.base import Source
from bdbench.models.networks.given import given
from bdbench.models.plugins.spec import Spec
from bdbench.models.training.loop import ROUNDS

POINTS = 20
"""Of the curve of one training, at most."""
SHARE = 0.15
"""Of the work of a cell that the points of its curve may cost, in forward passes."""
LENT = SHARE / 2
"""The same of a network trained with no defense: one that begins with it has the rest."""

NOTHING: Mapping[Any, float] = MappingProxyType({})


def expected_passes(cell: Cell) -> float:
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
    needed = shared_work(cell)
    return {**needed, own(cell): expected_passes(cell) - sum(needed.values())}


def own(cell: Cell) -> Part:
    """What only this cell needs."""
    return (*cell.specs.values(), cell.seed, "fit")


def shared_work(cell: Cell) -> dict[Part, float]:
    """The parts of a cell's work that other cells need too, each as `work`: the training of an
    attack, and the networks trained with no defense."""
    origin = (*(spec for axis, spec in cell.specs.items() if axis != "defense"), cell.seed)
    costs = {"attack": cell.attack.cost(cell.recipe)}
    if given(cell.model) is None:
        networks = range(cell.defense.undefended)
        costs |= {f"undefended {n}": _undefended(cell) for n in networks}
    return {(*origin, part): cost * cell.dataset.count for part, cost in costs.items() if cost}


def added_work(cells: Iterable[Cell], there: Mapping[Part, float] = NOTHING) -> dict[Cell, float]:
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


@dataclass(frozen=True)
class Sample:
    """So many images, on which a point of a curve stands.

    training: for its losses
    test: for its shares; each with and without the trigger
    """

    training: int
    test: int

    @property
    def work(self) -> int:
        """Forward passes."""
        return self.training + 2 * self.test


def sample(budget: float, training: int, test: int) -> Sample:
    """What a budget of forward passes allows for a point, of so many images that there are: a third
    for each kind and, where all test images are in, the rest for training images; at least one of
    either."""
    few = max(1, min(test, int(budget / 3)))
    return Sample(max(1, min(training, int(budget) - 2 * few)), few)


def drawn(rounds: int) -> list[int]:
    """After which rounds of a training its curve has a point: evenly spread, the last one too."""
    points = min(POINTS, rounds)
    return [math.ceil(rounds * n / points) for n in range(1, points + 1)]


def curve_work(cell: Cell, there: Mapping[Part, float] = NOTHING) -> float:
    """Forward passes for the points of a cell's curves, as `TrainingMonitor` draws them."""
    needed = shared_work(cell)
    networks = [part for part in needed if str(part[-1]).startswith("undefended")]
    begun = sum(needed[part] for part in networks)
    whole = 0.0
    # One that is there brings its curve, and a defense that begins with one tunes it.
    if networks and networks[0] not in there:
        whole += _points(cell, cell.recipe.epochs, LENT * needed[networks[0]])
    if not Spec.of(cell.specs["defense"]).is_none:
        mine = parts(cell)[own(cell)]
        epochs = min(math.ceil(mine / cell.dataset.count / 3), cell.recipe.epochs)
        rounds = max(1, min(ROUNDS, epochs * ROUNDS) if networks else epochs)
        whole += _points(cell, rounds, SHARE * (begun + mine) - LENT * begun)
    return whole


def _points(cell: Cell, rounds: int, budget: float) -> float:
    """Forward passes for the points of one training that has such a budget for them."""
    count = len(drawn(rounds))
    each = sample(budget / count, cell.dataset.count, tests(cell.dataset))
    return float(count * each.work)


def tests(source: Source) -> int:
    """Number of test images; as many as for training where a source does not say."""
    size: int = getattr(source, "test_images", getattr(source, "test_size", source.count))
    return size

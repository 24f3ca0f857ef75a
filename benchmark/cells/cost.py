"""The expected cost of cells before anything runs, in forward passes of one image.

A backward pass counts as two forward passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from bdbench.attacks.compound import parts_of
from bdbench.cells.cell import Cell, without_attack
from bdbench.datasets.base import Source
from bdbench.models.networks.given import given
from bdbench.models.training.loop import ROUNDS

POINTS = 20
"""Largest number of points on the curve of one training."""
SHARE = 0.15
"""Largest cost of all points on the curves of a cell, relative to the work of the cell."""
UNDEFENDED_SHARE = SHARE / 2
"""The same for an undefended network. A defense that starts from it has the rest of `SHARE`."""

NOTHING: Mapping[Any, float] = MappingProxyType({})


def expected_passes(cell: Cell) -> float:
    """The expected work of a cell that runs alone, in forward passes: training its attack, its
    undefended networks and its defense. A network that is given costs nothing."""
    own = cell.declared.defense
    if given(cell.model) is not None:
        own = max(0.0, own - _undefended(cell) * cell.declared.undefended)
    return (cell.declared.attack + own) * cell.dataset.count


def _undefended(cell: Cell) -> float:
    """The work of training one undefended network, in forward passes per training image."""
    return 3.0 * cell.recipe.epochs


Part = tuple[Any, ...]
"""A part of the work of a cell: specs, seed and, last, its name. Cells share equal parts."""


def parts(cell: Cell) -> dict[Part, float]:
    """The forward passes of each part of a cell's work: those of `shared_work`, then its own. They
    add up to `expected_passes`."""
    needed = shared_work(cell)
    return {**needed, own(cell): expected_passes(cell) - sum(needed.values())}


def own(cell: Cell) -> Part:
    """The part that only this cell needs: its defense."""
    return (*cell.specs.values(), cell.seed, "fit")


def shared_work(cell: Cell) -> dict[Part, float]:
    """The forward passes of each part of a cell's work that other cells may share: the training of
    its attack, and of its undefended networks."""
    origin = (*(spec for axis, spec in cell.specs.items() if axis != "defense"), cell.seed)
    costs = {"attack": cell.declared.attack}
    if given(cell.model) is None:
        networks = range(cell.declared.undefended)
        costs |= {f"undefended {n}": _undefended(cell) for n in networks}
    return {(*origin, part): cost * cell.dataset.count for part, cost in costs.items() if cost}


def added_work(cells: Iterable[Cell], there: Mapping[Part, float] = NOTHING) -> dict[Cell, float]:
    """The forward passes that each cell adds to those before it: a shared part counts for the first
    cell that needs it. A cell that comes again adds nothing.

    there: forward passes of each part that are already done
    """
    counted: set[Part] = set()
    found = {}
    for each in dict.fromkeys(cells):
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
    """The numbers of images that a point of a curve is measured on.

    training: for its losses
    test: for its shares, each image without a trigger and with each
    triggers: of the attack, one for each of its parts
    """

    training: int
    test: int
    triggers: int = 1

    @property
    def work(self) -> int:
        """Forward passes of one point."""
        return self.training + (1 + self.triggers) * self.test


def sample(budget: float, training: int, test: int, triggers: int = 1) -> Sample:
    """The images that a budget of forward passes allows for one point, at least one of each kind.

    Training images, test images without a trigger and test images with each trigger get the same
    share of the budget; what test images do not need goes to training images.

    training, test: numbers of images that the data set has
    triggers: of the attack
    """
    few = max(1, min(test, int(budget / (2 + triggers))))
    rest = int(budget) - (1 + triggers) * few
    return Sample(max(1, min(training, rest)), few, triggers)


def point_rounds(rounds: int) -> list[int]:
    """The rounds of a training after which its curve has a point, counted from 1: evenly spread,
    including the last one."""
    points = min(POINTS, rounds)
    return [math.ceil(rounds * n / points) for n in range(1, points + 1)]


def curve_work(cell: Cell, there: Mapping[Part, float] = NOTHING) -> float:
    """The forward passes for all points of a cell's curves, as `TrainingMonitor` evaluates them.

    there: forward passes of each part that are already done
    """
    shared = shared_work(cell)
    networks = [part for part in shared if str(part[-1]).startswith("undefended")]
    undefended = sum(shared[part] for part in networks)
    total = 0.0
    # A stored undefended network has its curve already.
    if networks and networks[0] not in there:
        total += _points(cell, cell.recipe.epochs, UNDEFENDED_SHARE * shared[networks[0]])
    if cell.is_defended:
        defense = parts(cell)[own(cell)]
        epochs = min(math.ceil(defense / cell.dataset.count / 3), cell.recipe.epochs)
        # A defense that starts from an undefended network tunes it for a number of updates.
        rounds = max(1, min(ROUNDS, epochs * ROUNDS) if networks else epochs)
        budget = SHARE * (undefended + defense) - UNDEFENDED_SHARE * undefended
        total += _points(cell, rounds, budget)
    return total


def _points(cell: Cell, rounds: int, budget: float) -> float:
    """The forward passes for the points of one training, within a budget of forward passes."""
    count = len(point_rounds(rounds))
    triggers = max(1, len(parts_of(cell.attack)))
    each = sample(budget / count, cell.dataset.count, tests(cell.dataset), triggers)
    return float(count * each.work)


RETUNING = 40, 128, 0.02, 5
"""Of the attempt to reactivate a backdoor: updates, images in a batch at most, share of the clean
training set, and poisoned images."""


def reactivation_work(cell: Cell) -> float:
    """The forward passes of an attempt to reactivate the backdoor, and of the same for a network
    trained on clean images, see `controls`. Those of the evaluations are left out."""
    if not cell.is_attacked:
        return 0.0
    updates, batch, clean, poisoned = RETUNING
    images = min(batch, round(clean * cell.dataset.count) + poisoned)
    networks = 1 + len(controls([cell]))
    return 3.0 * networks * cell.recipe.shortened(updates) * images


def controls(cells: Iterable[Cell]) -> list[Cell]:
    """The cells whose networks show what the attempt does without a backdoor: that of attack `none`
    for each undefended cell with an attack."""
    found = (
        without_attack(cell)
        for cell in cells
        if cell.is_attacked and not cell.is_defended and given(cell.model) is None
    )
    return list(dict.fromkeys(found))


def tests(source: Source) -> int:
    """The number of test images; that of training images if the source does not say."""
    size: int = getattr(source, "test_images", getattr(source, "test_size", source.count))
    return size

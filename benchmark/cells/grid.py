"""From a suite to its cells, and what they will cost."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from bdbench.attacks.registry import attacks
from bdbench.cells.cell import Cell, cell, recipe_of
from bdbench.cells.suites import Suite
from bdbench.datasets.registry import datasets
from bdbench.defenses.registry import defenses
from bdbench.machine.clock import synchronise
from bdbench.models.plugins.errors import at_least
from bdbench.models.scope import threaded
from bdbench.models.training.context import TrainingContext, network_builder
from bdbench.models.training.loop import Recipe


def cells(suite: Suite, precision: str) -> list[Cell]:
    """All cells, seed by seed, so that an interrupted run has whole tables first.

    Raises `InvalidInput` for anything in the suite that is not right.
    """
    at_least(1, seeds=suite.seeds)
    found = []
    chosen = [suite.settings.get(name, name) for name in suite.defenses]
    for dataset in suite.datasets:
        recipe = recipe_for(dataset, suite.recipe, precision)
        for seed, model, attack, defense in product(
            range(suite.seeds), suite.models, suite.attacks, chosen
        ):
            found.append(cell(dataset, model, attack, defense, recipe, seed))
    return list(dict.fromkeys(found))


def recipe_for(dataset: str, fields: Mapping[str, Any], precision: str) -> Recipe:
    """The recipe of a data set, which brings its own learning rate and says whether flipping keeps
    its labels; `fields` come before either. Raises `InvalidInput`."""
    source = datasets.build(dataset)
    brought = {"learning_rate": source.learning_rate, "flip": source.flip}
    return Recipe(**{**brought, **fields}, precision=precision)


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


class Speed:
    """Forward passes per second of each model, first probed and then learned from what ran.

    threads: of a processor, None for as many as torch takes
    """

    def __init__(self, device: torch.device, threads: int | None = None) -> None:
        self.device, self.threads = device, threads
        self._rates: dict[tuple[str, str, int], float] = {}

    def seconds(self, cells: Iterable[Cell]) -> float:
        """Expected for these cells, data loading and evaluation left out."""
        return sum(share / self._rate(cell) for cell, share in shares(cells).items())

    def learn(self, cell: Cell, done: float, seconds: float) -> None:
        """A cell did so much work in so many seconds."""
        if done and seconds:
            self._rates[self._kind(cell)] = done / seconds

    def _kind(self, cell: Cell) -> tuple[str, str, int]:
        return cell.model, cell.recipe, datasets.build(cell.dataset).image_size

    def _rate(self, cell: Cell) -> float:
        kind = self._kind(cell)
        if kind not in self._rates:
            with threaded(self.threads):
                self._rates[kind] = probe(cell, self.device)
        return self._rates[kind]


def probe(cell: Cell, device: torch.device, steps: int = 8) -> float:
    """Forward passes per second of a cell's model: the fastest of a few training steps on noise."""
    source, recipe = datasets.build(cell.dataset), recipe_of(cell.recipe)
    size, classes = source.image_size, source.num_classes
    builder = network_builder(cell.model, classes, size)
    network = TrainingContext(recipe, device, builder, seed=0).build()
    optimizer = recipe.sgd(network)
    images = torch.rand(recipe.batch_size, 3, size, size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(recipe.batch_size, device=device) % classes
    seconds = []
    for _ in range(steps):
        synchronise(device)
        start = time.perf_counter()
        optimizer.zero_grad()
        cross_entropy(network(images), labels).backward()
        optimizer.step()
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return 3 * recipe.batch_size / min(seconds)

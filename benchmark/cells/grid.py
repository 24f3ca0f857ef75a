"""From a suite to its cells, and what they will cost."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

from bdbench.cells.cell import Cell, cell
from bdbench.cells.suites import Suite
from bdbench.datasets.registry import datasets
from bdbench.models.plugins.errors import at_least
from bdbench.models.training.recipe import Recipe


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

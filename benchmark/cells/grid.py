"""From a suite to its cells."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

from bdbench.attacks.base import check_target
from bdbench.attacks.registry import attacks
from bdbench.cells.cell import Cell, share
from bdbench.cells.suites import Suite
from bdbench.datasets.base import Source
from bdbench.datasets.registry import datasets
from bdbench.defenses.registry import defenses
from bdbench.models.plugins.errors import at_least
from bdbench.models.registry import models
from bdbench.models.training.recipe import Recipe


def cells(suite: Suite, precision: str) -> list[Cell]:
    """All cells, seed by seed, so that an interrupted run has whole tables first. Each plugin is
    built once; an axis may hold plugins in place of specs.

    Raises `InvalidInput` for anything in the suite that is not right.
    """
    at_least(1, seeds=suite.seeds)
    chosen = [
        suite.settings.get(each, each) if isinstance(each, str) else each for each in suite.defenses
    ]
    axes = (
        range(suite.seeds),
        [models.built(each) for each in suite.models],
        [attacks.built(each) for each in suite.attacks],
        [defenses.built(each) for each in chosen],
    )
    found: list[Cell] = []
    for dataset in map(datasets.built, suite.datasets):
        recipe = recipe_for(dataset, suite.recipe, precision)
        for attack in axes[2]:
            check_target(attack.target, dataset.num_classes)
        found += [
            Cell(dataset, model, attack, defense, recipe, seed)
            for seed, model, attack, defense in product(*axes)
        ]
    share(found)
    return list(dict.fromkeys(found))


def recipe_for(dataset: Source, fields: Mapping[str, Any], precision: str) -> Recipe:
    """The recipe of a data set, which brings its own learning rate and says whether flipping keeps
    its labels; `fields` come before either. Raises `InvalidInput`."""
    brought = {"learning_rate": dataset.learning_rate, "flip": dataset.flip}
    return Recipe(**{**brought, **fields}, precision=precision)

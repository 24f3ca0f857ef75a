"""From a suite to its cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any, TypeVar

from bdbench.attacks.base import check_target
from bdbench.attacks.registry import attacks
from bdbench.cells.cell import Cell, recipes_of, share
from bdbench.cells.suites import Suite
from bdbench.datasets.base import Source
from bdbench.datasets.registry import datasets
from bdbench.defenses.registry import defenses
from bdbench.models.plugins.registry import Registry
from bdbench.models.registry import models
from bdbench.models.training.recipe import Recipe

T = TypeVar("T")


def cells(suite: Suite, precision: str) -> list[Cell]:
    """All cells, seed by seed, so that an interrupted run has whole tables first. Each plugin is
    built once; an axis may hold plugins in place of specs, and a spec may be a sweep.

    Raises `InvalidInput` for anything in the suite that is not right.
    """
    chosen = [
        suite.settings.get(each, each) if isinstance(each, str) else each for each in suite.defenses
    ]
    axes = (
        suite.each_seed,
        _plugins(models, suite.models),
        _plugins(attacks, suite.attacks),
        _plugins(defenses, chosen),
    )
    recipes = recipes_of(suite.recipe)
    found: list[Cell] = []
    for dataset in _plugins(datasets, suite.datasets):
        for attack in axes[2]:
            check_target(attack.target, dataset.num_classes)
        for fields in recipes:
            recipe = recipe_for(dataset, fields, precision)
            found += [
                Cell(dataset, model, attack, defense, recipe, seed)
                for seed, model, attack, defense in product(*axes)
            ]
    share(found)
    return list(dict.fromkeys(found))


def _plugins(registry: Registry[T], axis: Iterable[str | T]) -> list[T]:
    return [plugin for each in axis for plugin in registry.swept(each)]


def recipe_for(dataset: Source, fields: Mapping[str, Any], precision: str) -> Recipe:
    """The recipe of a data set, which brings its own learning rate and says whether flipping keeps
    its labels; `fields` come before either. Raises `InvalidInput`."""
    brought = {"learning_rate": dataset.learning_rate, "flip": dataset.flip}
    return Recipe(**{**brought, **fields}, precision=precision)

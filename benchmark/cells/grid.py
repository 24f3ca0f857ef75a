"""The cells of a suite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any, TypeVar

from bdbench.attacks.registry import attacks
from bdbench.cells.cell import Cell, check_targets, recipes_of, share_info
from bdbench.cells.declared import recipe_defaults
from bdbench.cells.suites import Suite, is_name
from bdbench.datasets.base import Source
from bdbench.datasets.registry import datasets
from bdbench.defenses.base import Defense
from bdbench.defenses.registry import defenses
from bdbench.models.plugins.registry import Registry
from bdbench.models.registry import models
from bdbench.models.training.recipe import Recipe

T = TypeVar("T")


def cells(suite: Suite, precision: str) -> list[Cell]:
    """All cells of a suite. Those of a data set and recipe come seed by seed, so that an
    interrupted run has complete tables first.

    Each plugin is built once. An axis may hold plugins in place of specs; a spec may be a sweep.

    precision: fp32 or bf16

    Raises `InvalidInput` for anything in the suite that is wrong.
    """
    chosen = [_with_settings(each, suite.settings) for each in suite.defenses]
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
            check_targets(attack, dataset)
        for fields in recipes:
            recipe = recipe_for(dataset, fields, precision)
            found += [
                Cell(dataset, model, attack, defense, recipe, seed)
                for seed, model, attack, defense in product(*axes)
            ]
    share_info(found)
    return list(dict.fromkeys(found))


def _with_settings(defense: str | Defense, settings: Mapping[str, str]) -> str | Defense:
    """The settings of a suite for a defense that is asked for by its name alone."""
    if isinstance(defense, str):
        return next((text for name, text in settings.items() if is_name(defense, name)), defense)
    return defense


def _plugins(registry: Registry[T], axis: Iterable[str | T]) -> list[T]:
    return [plugin for each in axis for plugin in registry.swept(each)]


def recipe_for(dataset: Source, fields: Mapping[str, Any], precision: str) -> Recipe:
    """The recipe for a data set, which sets the learning rate and whether images are flipped unless
    `fields` do. Raises `InvalidInput`."""
    return Recipe(**{**recipe_defaults(dataset), **fields}, precision=precision)

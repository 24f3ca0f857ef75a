"""What the command line, or a call of the Python API, overrides in a suite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bdbench.attacks.base import Attack
from bdbench.cells.cell import RECIPE, recipe_fields
from bdbench.cells.suites import Suite, check_seeds
from bdbench.datasets import registry
from bdbench.datasets.base import Source
from bdbench.defenses.base import Defense
from bdbench.models.plugins import spec
from bdbench.models.plugins.errors import of_types, require
from bdbench.models.registry import Model
from bdbench.models.training.recipe import Recipe


@dataclass(frozen=True)
class SuiteOverrides:
    """What overrides a suite. Fields that are None, empty or False leave it unchanged.

    dataset, model, attack, defense: specs or plugins that replace those of the axis
    seeds: number of seeds, counted from 0
    seed: exact seeds, in place of `seeds`
    recipe: a spec that replaces the recipe fields of the suite
    epochs, loader, graphs: fields of the recipe
    train_images: number of training images of each data set
    precision: auto, fp32 or bf16
    """

    dataset: Sequence[str | Source] = ()
    model: Sequence[str | Model] = ()
    attack: Sequence[str | Attack] = ()
    defense: Sequence[str | Defense] = ()
    seeds: int | None = None
    seed: Sequence[int] = ()
    recipe: str | None = None
    epochs: int | None = None
    train_images: int | None = None
    loader: str | None = None
    precision: str | None = None
    graphs: bool = False

    def __post_init__(self) -> None:
        of_types(self, "recipe")

    def applied_to(self, suite: Suite) -> Suite:
        """The suite with these overrides. Raises `InvalidInput`."""
        require(
            self.seeds is None or not self.seed,
            "--seeds is how many and --seed exactly which: give one of them",
        )
        seeds = tuple(self.seed) or (suite.seeds if self.seeds is None else self.seeds)
        check_seeds(seeds)
        fields = dict(suite.recipe) if self.recipe is None else recipe_fields(self.recipe)
        stated = _accept("precision", fields.pop("precision", suite.precision))
        if self.epochs is not None:
            fields["epochs"] = _accept("epochs", self.epochs)
        if self.loader is not None:
            fields["loader"] = self.loader
        if self.graphs:
            fields["graphs"] = True
        datasets = tuple(self.dataset) or suite.datasets
        if self.train_images is not None:
            datasets = tuple(_subset(each, self.train_images) for each in datasets)
        return replace(
            suite,
            datasets=datasets,
            models=tuple(self.model) or suite.models,
            attacks=tuple(self.attack) or suite.attacks,
            defenses=tuple(self.defense) or suite.defenses,
            seeds=seeds,
            recipe=fields,
            precision=self.precision or stated,
        )

    def note(self, name: str, suite: Suite) -> str:
        """That other data sets get a recipe which was chosen for those of a suite; empty if none
        does.

        name: of the suite
        """
        own = [_name(each) for each in suite.datasets]
        if not suite.recipe or self.recipe is not None or {*map(_name, self.dataset)} <= {*own}:
            return ""
        more = " and the settings of defenses are those" if suite.settings else " is that"
        return (
            f"note: the recipe{more} of the suite {name}, made for {', '.join(own)}: name a suite "
            "or --recipe"
        )


def _name(dataset: str | Source) -> str:
    return spec.asked(dataset).name if isinstance(dataset, str) else dataset.name


def _accept(field: str, value: Any) -> Any:
    """The value of a recipe field that cannot be swept, checked. Raises `InvalidInput`."""
    return spec.fields_of(Recipe)[field].accept(value, RECIPE)


def _subset(dataset: str | Source, train_images: int) -> str | Source:
    if isinstance(dataset, str):
        given = spec.asked(dataset)
        registry.datasets.factory(given.name)
        return str(given.with_(train_images=train_images))
    return replace(dataset, train_images=train_images)

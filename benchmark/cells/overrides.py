"""What the command line, or a call of the Python API, overrides in a suite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bdbench.attacks.base import Attack
from bdbench.cells.cell import RECIPE, recipe_fields
from bdbench.cells.suites import Suite, check_seeds, is_name
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
        stated = accept_one("precision", fields.pop("precision", suite.precision))
        if self.epochs is not None:
            fields["epochs"] = accept_one("epochs", self.epochs)
        if self.loader is not None:
            fields["loader"] = self.loader
        if self.graphs:
            fields["graphs"] = True
        datasets = _of_suite(self.dataset, suite.datasets)
        if self.train_images is not None:
            datasets = tuple(_subset(each, self.train_images) for each in datasets)
        return replace(
            suite,
            datasets=datasets,
            models=_of_suite(self.model, suite.models),
            attacks=_of_suite(self.attack, suite.attacks),
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


def _of_suite(given: Sequence[Any], axis: Sequence[Any]) -> tuple[Any, ...]:
    """What is asked for along an axis, all that the suite has without any. A name alone means what
    the suite has of it, such as `badnets(target=1)`: the defaults, if the suite has them, too."""
    found = [
        chosen
        for each in given
        for chosen in ([each] if each in axis else _with_name(each, axis) or [each])
    ]
    return tuple(found) if given else tuple(axis)


def _with_name(asked: Any, axis: Sequence[Any]) -> list[str]:
    """The specs of an axis that have the name, if the name is all that is asked for."""
    specs = [each for each in axis if isinstance(each, str)] if isinstance(asked, str) else []
    return [each for each in specs if is_name(asked, spec.asked(each).name)]


def _name(dataset: str | Source) -> str:
    return spec.asked(dataset).name if isinstance(dataset, str) else dataset.name


def accept_one(field: str, value: Any) -> Any:
    """The value of a recipe field that cannot be swept, checked. Raises `InvalidInput`."""
    require(
        not isinstance(value, list),
        f"{field} cannot be swept: run the suite once for each of {value}, with --{field}",
    )
    return spec.fields_of(Recipe)[field].accept(value, RECIPE)


def _subset(dataset: str | Source, train_images: int) -> str | Source:
    if isinstance(dataset, str):
        given = spec.asked(dataset)
        registry.datasets.factory(given.name)
        return str(given.with_(train_images=train_images))
    return replace(dataset, train_images=train_images)

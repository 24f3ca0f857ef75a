"""A cell: one data set, model, attack, defense, recipe and seed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from bdbench.attacks.base import check_target
from bdbench.attacks.registry import attacks
from bdbench.datasets.registry import datasets
from bdbench.defenses.registry import defenses
from bdbench.models.plugins import spec
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.registry import models
from bdbench.models.training.recipe import Recipe
from bdbench.records.record import SCHEMA
from bdbench.storage.keys import digest_of

REGISTRIES: dict[str, Any] = {
    "dataset": datasets,
    "model": models,
    "attack": attacks,
    "defense": defenses,
}


@dataclass(frozen=True)
class Cell:
    """Canonical specs; make one with `cell`. Everything that decides the numbers is in here."""

    dataset: str
    model: str
    attack: str
    defense: str
    recipe: str
    seed: int

    @property
    def versions(self) -> dict[str, Any]:
        """Of the plugins: raised by their authors when numbers change. A list of them where one
        plugin holds another."""
        found = {}
        for axis, registry in REGISTRIES.items():
            versions = [registry.version(name) for name in registry.parts(getattr(self, axis))]
            found[axis] = versions if len(versions) > 1 else versions[0]
        return found

    @property
    def key(self) -> str:
        """16 hex digits that stand for this cell, the name of its record."""
        parts = {"schema": SCHEMA, "versions": self.versions, **dataclasses.asdict(self)}
        return digest_of(parts)[:16]

    @property
    def labels(self) -> dict[str, str]:
        """The specs, with only the fields that differ from their defaults."""
        short = {axis: reg.label(getattr(self, axis)) for axis, reg in REGISTRIES.items()}
        default = dataclasses.asdict(Recipe())
        given = dataclasses.asdict(recipe_of(self.recipe))
        changed = {name: value for name, value in given.items() if value != default[name]}
        return {**short, "recipe": spec.render("recipe", changed)}


def cell(dataset: str, model: str, attack: str, defense: str, recipe: Recipe, seed: int) -> Cell:
    """The cell of these specs. Raises `InvalidInput` for a name, field or value that is not right,
    so that a suite is checked whole before anything trains."""
    source = datasets.build(dataset)
    models.settings(model)
    plan = attacks.build(attack)
    check_target(plan.target, source.num_classes)
    if not plan.trains:
        plan.trigger(torch.zeros(1, 3, source.image_size, source.image_size, dtype=torch.uint8))
    defenses.build(defense)
    return Cell(
        dataset=datasets.canonical(dataset),
        model=models.canonical(model),
        attack=attacks.canonical(attack),
        defense=defenses.canonical(defense),
        recipe=spec.canonical("recipe", vars(recipe), spec.fields_of(Recipe)),
        seed=seed,
    )


def recipe_of(text: str) -> Recipe:
    """The recipe of a recipe spec. Raises `InvalidInput`."""
    return Recipe(**recipe_fields(text))


def recipe_fields(text: str) -> dict[str, Any]:
    """The fields that a recipe spec gives, checked. Raises `InvalidInput`."""
    name, given = spec.parse(text)
    fields = spec.fields_of(Recipe)
    if name != "recipe":
        raise InvalidInput(f"a recipe is written recipe(field=value, ...), got {text!r}")
    for key in given:
        if key not in fields:
            raise InvalidInput(f"the recipe has no field {key!r}{spec.did_you_mean(key, fields)}")
    return {key: fields[key].accept(value, "the recipe") for key, value in given.items()}

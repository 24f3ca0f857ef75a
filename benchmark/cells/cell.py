"""A cell: one data set, model, attack, defense, recipe and seed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from bdbench.attacks.base import Attack, check_target
from bdbench.attacks.registry import attacks
from bdbench.datasets.base import Source
from bdbench.datasets.registry import datasets
from bdbench.defenses.base import Defense
from bdbench.defenses.registry import defenses
from bdbench.models.plugins import spec
from bdbench.models.plugins.errors import InvalidInput, require
from bdbench.models.plugins.local import Code, code_of
from bdbench.models.plugins.registry import Registry, version_of
from bdbench.models.plugins.spec import Spec
from bdbench.models.registry import Model, models
from bdbench.models.rng import global_seed
from bdbench.models.training.recipe import Recipe
from bdbench.records.record import Record, key_of
from bdbench.records.rerun import line, with_plugins
from bdbench.storage.keys import digest_of

RECIPE = "the recipe"
REGISTRIES: dict[str, Registry[Any]] = {
    "dataset": datasets,
    "model": models,
    "attack": attacks,
    "defense": defenses,
}


@dataclass(frozen=True)
class Words:
    """What a plugin is called: canonical spec, label and versions, see `Cell`; the spec by which
    another process builds it; its title, if it has one; its code, if it is local; and the modules
    of what made it."""

    spec: str
    located: str
    label: str
    title: str
    versions: Any
    code: Code | None
    modules: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Cell:
    """Plugins with their settings; make one with `cell`. All that decides the numbers is in here.

    Two cells are equal if they have the same key. A pickled cell is its specs: whoever reads it
    must have loaded the files of its plugins.
    """

    dataset: Source
    model: Model
    attack: Attack
    defense: Defense
    recipe: Recipe
    seed: int

    @cached_property
    def specs(self) -> dict[str, str]:
        """Of the axes and the recipe, with every field."""
        found = {axis: words.spec for axis, words in self.words.items()}
        return {**found, "recipe": recipe_spec(self.recipe)}

    @cached_property
    def words(self) -> dict[str, Words]:
        """By axis; see `share`."""
        return {axis: _words(axis, getattr(self, axis)) for axis in REGISTRIES}

    @property
    def identity(self) -> dict[str, Any]:
        """Specs and seed, as a record has them."""
        return {**self.specs, "seed": self.seed}

    @cached_property
    def located(self) -> dict[str, Any]:
        """Specs and seed for `cell_of` in another process: as `identity`, but a place in them is
        whole."""
        return {**self.identity, **{axis: words.located for axis, words in self.words.items()}}

    @cached_property
    def versions(self) -> dict[str, Any]:
        """Of the plugins: raised by their authors when numbers change. A list of them where one
        plugin holds another. That of a local plugin is a hash of its code; beside that of a data
        set stands the hash of its files where no name says which images it has."""
        return {axis: words.versions for axis, words in self.words.items()}

    @cached_property
    def local(self) -> dict[str, Code]:
        """The code of plugins that no other process can make, by axis."""
        return {axis: words.code for axis, words in self.words.items() if words.code}

    @cached_property
    def key(self) -> str:
        """See `key_of`."""
        return key_of(self.identity, self.versions)

    @cached_property
    def labels(self) -> dict[str, str]:
        """The specs, with only the fields that differ from their defaults."""
        short = {axis: words.label for axis, words in self.words.items()}
        return {**short, "recipe": recipe_label(self.recipe)}

    def __eq__(self, other: object) -> bool:
        return self.key == other.key if isinstance(other, Cell) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.key)

    def __reduce__(self) -> tuple[Callable[..., Cell], tuple[Any, ...]]:
        return cell_of, (self.located,)


def cell(
    dataset: str | Source,
    model: str | Model,
    attack: str | Attack,
    defense: str | Defense,
    recipe: Recipe,
    seed: int,
) -> Cell:
    """The cell of these specs or plugins. Raises `InvalidInput` for a name, field or value that is
    not right, so that a suite is checked whole before anything trains."""
    made = Cell(
        datasets.built(dataset),
        models.built(model),
        attacks.built(attack),
        defenses.built(defense),
        recipe,
        seed,
    )
    check_target(made.attack.target, made.dataset.num_classes)
    return made


def check_trigger(cell: Cell) -> None:
    """Raises `InvalidInput` for a trigger that does not fit the images."""
    if not cell.attack.trains:
        size = cell.dataset.image_size
        cell.attack.trigger(torch.zeros(1, 3, size, size, dtype=torch.uint8))


def check_network(cell: Cell) -> None:
    """Raises `InvalidInput` for a network that cannot be made for the images, or that lacks what
    the defense needs."""
    classes, size = cell.dataset.num_classes, cell.dataset.image_size
    with global_seed(0, "look"):
        network = cell.model.build(classes, size).eval()
    lacking = cell.defense.lacks(network, size)
    require(
        not lacking,
        f"defense {cell.labels['defense']} needs {lacking}, which model {cell.labels['model']} "
        f"lacks at {size} pixels: choose another model or leave out the defense",
    )


def share(cells: Iterable[Cell]) -> None:
    """Find the words of a plugin once for all cells that have it."""
    known: dict[tuple[str, int], Words] = {}
    for each in cells:
        found = {}
        for axis in REGISTRIES:
            plugin = getattr(each, axis)
            place = axis, id(plugin)
            if place not in known:
                known[place] = _words(axis, plugin)
            found[axis] = known[place]
        vars(each)["words"] = found


def _words(axis: str, plugin: Any) -> Words:
    registry = REGISTRIES[axis]
    factories = registry.factories(plugin)
    versions: list[Any] = [
        digest_of(code_of(each).text) if registry.is_local(each) else version_of(each)
        for each in factories
    ]
    if axis == "dataset" and plugin.content is not None:
        versions.append(plugin.content)
    canonical = registry.canonical(plugin)
    return Words(
        spec=canonical,
        located=registry.located(plugin),
        title=registry.title(Spec.of(canonical).name),
        label=registry.label(plugin),
        versions=versions if len(versions) > 1 else versions[0],
        code=code_of(factories[0]) if registry.is_local(factories[0]) else None,
        modules=tuple(each.__module__ for each in factories),
    )


def cell_of(identity: Mapping[str, Any]) -> Cell:
    """The cell of complete specs and a seed, as `Cell.located` and a record's `cell` have them.
    Raises `InvalidInput`, for a plugin that is not loaded, too."""
    plugins = {axis: registry.build(identity[axis]) for axis, registry in REGISTRIES.items()}
    return Cell(**plugins, recipe=recipe_of(identity["recipe"]), seed=identity["seed"])


def cell_of_record(record: Record) -> Cell:
    """The cell of a record. Raises `InvalidInput` as `cell_of` does, with the plugin files that its
    run had."""
    try:
        return cell_of(record.cell)
    except InvalidInput as error:
        options = with_plugins([record])
        if not options:
            raise
        raise InvalidInput(
            f"{error}; cell {record.key} was run with a plugin of your own: add {line(*options)}"
        ) from error


@functools.cache
def recipe_label(recipe: Recipe) -> str:
    """The spec with only the fields that differ from their defaults."""
    default, given = vars(Recipe()), vars(recipe)
    changed = {name: value for name, value in given.items() if value != default[name]}
    return str(Spec("recipe", changed))


@functools.cache
def recipe_spec(recipe: Recipe) -> str:
    """The spec of a recipe, with every field but those `added` that have their defaults."""
    return str(spec.canonical(Spec("recipe", vars(recipe)), spec.fields_of(Recipe)))


def recipe_of(text: str) -> Recipe:
    """The recipe of a recipe spec. Raises `InvalidInput`."""
    return Recipe(**recipe_fields(text))


def recipe_fields(text: str) -> dict[str, Any]:
    """The fields that a recipe spec gives, checked; a list in place of a value stays, see
    `recipes_of`. Raises `InvalidInput`."""
    given = Spec.of(text)
    if given.name != "recipe":
        raise InvalidInput(f"a recipe is written recipe(field=value, ...), got {text!r}")
    recipes_of(given.fields)
    return dict(given.fields)


def recipes_of(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Fields of a recipe, checked: those of each combination where lists sweep some of them, see
    `spec.swept`. Raises `InvalidInput`."""
    known = spec.fields_of(Recipe)
    for key in fields:
        if key not in known:
            raise InvalidInput(f"the recipe has no field {key!r}{spec.did_you_mean(key, known)}")
    return [
        {key: known[key].accept(value, RECIPE) for key, value in each.fields.items()}
        for each in spec.swept(Spec("recipe", fields), known, RECIPE)
    ]

"""A cell: one data set, model, attack, defense, recipe and seed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from bdbench.attacks.base import Attack, check_target
from bdbench.attacks.compound import parts_of
from bdbench.attacks.registry import attacks
from bdbench.cells.declared import DeclaredWork, declared_work, num_classes
from bdbench.datasets.base import Source
from bdbench.datasets.files import hash_of
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
from bdbench.storage.cache import sha256_of
from bdbench.storage.keys import digest_of

RECIPE = "the recipe"
"""What messages call it."""
REGISTRIES: dict[str, Registry[Any]] = {
    "dataset": datasets,
    "model": models,
    "attack": attacks,
    "defense": defenses,
}


@dataclass(frozen=True)
class PluginInfo:
    """What identifies a plugin of a cell.

    spec: the canonical spec, with every field
    located: the spec by which another process builds the plugin, with absolute paths
    label: the spec with only the fields that differ from their defaults
    title: the name for tables and figures, empty if it has none
    versions: see `Cell.versions`
    code: of all local parts of the plugin, which no other process can build; None without any
    codes: of each of these classes and functions
    modules: those of the classes and functions that made it
    files: hashes of the files and folders that its settings name, but for a data set that has a
        `content`
    """

    spec: str
    located: str
    label: str
    title: str
    versions: Any
    code: Code | None
    codes: Mapping[Callable[..., Any], Code]
    modules: tuple[str, ...]
    files: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Cell:
    """One experiment, as built plugins with their settings; make one with `cell`. It holds all
    that decides the numbers.

    Two cells are equal if they have the same key. A cell is pickled as its specs, so a process
    that unpickles one must have loaded the plugin files first.
    """

    dataset: Source
    model: Model
    attack: Attack
    defense: Defense
    recipe: Recipe
    seed: int

    @cached_property
    def specs(self) -> dict[str, str]:
        """The canonical specs of the plugins by axis, and of the recipe."""
        found = {axis: info.spec for axis, info in self.info.items()}
        return {**found, "recipe": recipe_spec(self.recipe)}

    @property
    def is_attacked(self) -> bool:
        """False for the attack `none`."""
        return not Spec.of(self.specs["attack"]).is_none

    @property
    def is_defended(self) -> bool:
        """False for the defense `none`, which returns the undefended network."""
        return not Spec.of(self.specs["defense"]).is_none

    @cached_property
    def info(self) -> dict[str, PluginInfo]:
        """What identifies the plugins, by axis; `share_info` finds it once for many cells."""
        return {axis: _info(axis, getattr(self, axis)) for axis in REGISTRIES}

    @property
    def identity(self) -> dict[str, Any]:
        """Specs and seed, as the `cell` of a record has them."""
        return {**self.specs, "seed": self.seed}

    @cached_property
    def located(self) -> dict[str, Any]:
        """Specs and seed for `cell_of` in another process: as `identity`, with absolute paths."""
        return {**self.identity, **{axis: info.located for axis, info in self.info.items()}}

    @cached_property
    def declared(self) -> DeclaredWork:
        """The work that the plugins announce."""
        images = self.dataset.count
        return declared_work(self.attack, self.defense, self.recipe, images, self.labels)

    @cached_property
    def versions(self) -> dict[str, Any]:
        """The versions of the plugins by axis, which authors raise when numbers change. A plugin
        that holds another one has a list of both. The version of a local plugin is a hash of its
        code. A data set whose name does not identify its images also has the hash of its files,
        and a plugin with settings that name files has those of these."""
        return {axis: info.versions for axis, info in self.info.items()}

    @cached_property
    def local(self) -> dict[str, Code]:
        """The code of the plugins that no other process can build, by axis."""
        return {axis: info.code for axis, info in self.info.items() if info.code}

    @cached_property
    def key(self) -> str:
        """16 hex digits that name the record of the cell, see `key_of`."""
        return key_of(self.identity, self.versions)

    @cached_property
    def labels(self) -> dict[str, str]:
        """The specs, with only the fields that differ from their defaults."""
        short = {axis: info.label for axis, info in self.info.items()}
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
    """The cell of these specs or plugins. Raises `InvalidInput` for a wrong name, field or value,
    so that all cells of a suite are checked before any trains."""
    made = Cell(
        datasets.built(dataset),
        models.built(model),
        attacks.built(attack),
        defenses.built(defense),
        recipe,
        seed,
    )
    check_targets(made.attack, made.dataset)
    return made


def rebuilt(cell: Cell) -> Cell:
    """The same cell with plugins that are built anew, as another process has them: a run of a cell
    may change its plugins, which other cells hold too. Raises `InvalidInput`."""
    plugins = {axis: each.rebuilt(getattr(cell, axis)) for axis, each in REGISTRIES.items()}
    made = replace(cell, **plugins)
    vars(made)["info"] = cell.info
    return made


def check_targets(attack: Attack, dataset: Source) -> None:
    """Raises `InvalidInput` for a target outside the classes, also that of a part."""
    classes = num_classes(dataset)
    for part, each in {"": attack, **parts_of(attack)}.items():
        check_target(each.target, classes, part)


def check_trigger(cell: Cell) -> None:
    """Raises `InvalidInput` for a trigger that does not fit the images. Attacks that train are not
    checked."""
    for attack in (cell.attack, *parts_of(cell.attack).values()):
        if not attack.trains:
            size = cell.dataset.image_size
            attack.trigger(torch.zeros(1, 3, size, size, dtype=torch.uint8))


def check_network(cell: Cell, axes: Sequence[str] = ("attack", "defense")) -> None:
    """Raises `InvalidInput` for a network that cannot be built for the images, or that lacks what
    the plugins of these axes need."""
    classes, size = cell.dataset.num_classes, cell.dataset.image_size
    with global_seed(0, "look"):
        network = cell.model.build(classes, size).eval()
    for axis in axes:
        lacking = getattr(cell, axis).lacks(network, size)
        require(
            not lacking,
            f"{axis} {cell.labels[axis]} needs {lacking}, which model {cell.labels['model']} "
            f"lacks at {size} pixels: choose another model or leave out the {axis}",
        )


def without_attack(cell: Cell) -> Cell:
    """The same cell with the attack `none`, whose target is that of its attack."""
    return replace(cell, attack=attacks.build(Spec("none", {"target": cell.attack.target})))


def share_info(cells: Iterable[Cell]) -> None:
    """Set `Cell.info` of many cells, looking up each plugin once."""
    known: dict[tuple[str, int], PluginInfo] = {}
    for each in cells:
        found = {}
        for axis in REGISTRIES:
            plugin = getattr(each, axis)
            place = axis, id(plugin)
            if place not in known:
                known[place] = _info(axis, plugin)
            found[axis] = known[place]
        vars(each)["info"] = found


def factories(axis: str, plugin: Any) -> list[Callable[..., Any]]:
    """The classes and functions of a plugin, and those of all plugins that it holds, each once."""
    found = (each for one in _parts(axis, plugin) for each in REGISTRIES[axis].factories(one))
    return list(dict.fromkeys(found))


def _parts(axis: str, plugin: Any) -> list[Any]:
    """A plugin, and the parts of an attack that has some."""
    return [plugin, *(parts_of(plugin).values() if axis == "attack" else ())]


def is_built_in(cell: Cell, axis: str) -> bool:
    """Whether a plugin of a cell, and all that it holds, come with bdbench."""
    return all(map(REGISTRIES[axis].is_built_in, factories(axis, getattr(cell, axis))))


def _info(axis: str, plugin: Any) -> PluginInfo:
    registry = REGISTRIES[axis]
    made_by = factories(axis, plugin)
    codes = {each: code_of(each) for each in made_by if registry.is_local(each)}
    versions: list[Any] = [
        digest_of(codes[each].text) if each in codes else version_of(each) for each in made_by
    ]
    content = plugin.content if axis == "dataset" else None
    named = _parts(axis, plugin) if content is None else []
    files = dict.fromkeys(file for each in named for file in registry.files(each))
    hashes = tuple(map(_hash, files))
    versions += hashes
    if content is not None:
        versions.append(content)
    label, canonical = registry.label(plugin), registry.canonical(plugin)
    owner = f"{registry.kind} {label}"
    return PluginInfo(
        spec=readable(canonical, owner),
        located=readable(registry.located(plugin), owner),
        title=registry.title(Spec.of(canonical).name),
        label=label,
        versions=versions if len(versions) > 1 else versions[0],
        code=_joined(codes.values()),
        codes=codes,
        modules=tuple(each.__module__ for each in made_by),
        files=hashes,
    )


def _hash(path: Path) -> str:
    """Of a file, or of the names and bytes of all files below a folder."""
    if path.is_file():
        return sha256_of(path)
    return hash_of(path, (each for each in path.rglob("*") if each.is_file()))


def _joined(codes: Collection[Code]) -> Code | None:
    """The code of all local parts of a plugin; None without any."""
    text = "\n".join(code.text for code in codes)
    return Code(text, all(code.whole for code in codes)) if codes else None


def cell_of(identity: Mapping[str, Any]) -> Cell:
    """The cell of complete specs and a seed, as `Cell.located` and the `cell` of a record have
    them. Raises `InvalidInput`, also for a plugin that is not loaded."""
    plugins = {axis: registry.build(identity[axis]) for axis, registry in REGISTRIES.items()}
    return Cell(**plugins, recipe=recipe_of(identity["recipe"]), seed=identity["seed"])


def cell_of_record(record: Record) -> Cell:
    """The cell of a record. Raises `InvalidInput` as `cell_of` does, and then names the plugin
    files of its run."""
    try:
        return cell_of(record.cell.as_dict())
    except InvalidInput as error:
        options = with_plugins([record])
        if not options:
            raise
        raise InvalidInput(
            f"{error}; cell {record.key} was run with a plugin of your own: add {line(*options)}"
        ) from error


@functools.cache
def recipe_label(recipe: Recipe) -> str:
    """The spec of a recipe, with only the fields that differ from their defaults."""
    default, given = vars(Recipe()), vars(recipe)
    changed = {name: value for name, value in given.items() if value != default[name]}
    return str(Spec("recipe", changed))


@functools.cache
def recipe_spec(recipe: Recipe) -> str:
    """The canonical spec of a recipe: every field, except those `added` later that have their
    defaults. Raises `InvalidInput` for one that is too long to be read again."""
    return readable(
        str(spec.canonical(Spec("recipe", vars(recipe)), spec.fields_of(Recipe))), RECIPE
    )


def readable(text: str, owner: str) -> str:
    """A spec that is not too long for records and other processes. Raises `InvalidInput`."""
    require(
        len(text) <= spec.LONGEST,
        f"{owner} has {len(text):,} characters with all its settings and its whole path; a spec "
        f"may have at most {spec.LONGEST:,}",
    )
    return text


def recipe_of(text: str) -> Recipe:
    """The recipe of a spec `recipe(field=value, ...)`. Raises `InvalidInput`."""
    return Recipe(**recipe_fields(text))


def recipe_fields(text: str) -> dict[str, Any]:
    """The fields of a recipe spec, checked. A list that sweeps a field is kept, see `recipes_of`.
    Raises `InvalidInput`, also for what is no text."""
    given = Spec.of(text) if isinstance(text, str) else None
    if given is None or given.name != "recipe":
        raise InvalidInput(f"a recipe is written recipe(field=value, ...), got {text!r}")
    recipes_of(given.fields)
    return dict(given.fields)


def recipes_of(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The fields of each recipe, checked: one for each combination of the values that lists sweep,
    see `spec.swept`. Raises `InvalidInput`."""
    known = spec.fields_of(Recipe)
    for key in fields:
        if key not in known:
            raise InvalidInput(f"the recipe has no field {key!r}{spec.did_you_mean(key, known)}")
    return [
        {key: known[key].accept(value, RECIPE) for key, value in each.fields.items()}
        for each in spec.swept(Spec("recipe", fields), known, RECIPE)
    ]

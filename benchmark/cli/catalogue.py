"""What `bdbench list` and `bdbench describe` print."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cache
from typing import Any

from bdbench.cells.suite_file import SUFFIX, find
from bdbench.cells.suites import SUITES
from bdbench.cli.columns import plain
from bdbench.models.plugins import spec
from bdbench.models.plugins.documentation import about_fields, about_module
from bdbench.models.plugins.errors import require
from bdbench.models.plugins.registry import Registry

KINDS = ("attacks", "defenses", "models", "datasets")


@cache
def registries() -> dict[str, Registry[Any]]:
    """The registries by kind. Suites need no torch, so it is imported only here."""
    from bdbench.cells.cell import REGISTRIES

    return {kind: REGISTRIES[kind.removesuffix("s")] for kind in KINDS}


def catalogue(kinds: Sequence[str]) -> str:
    """A table for each kind, with the name, first line and origin of every plugin, and a line for
    each plugin that failed to import."""
    parts = []
    for kind in kinds:
        if kind == "suites":
            rows = [(name, suite.description, "built in") for name, suite in SUITES.items()]
        else:
            registry = registries()[kind]
            rows = [
                (name, _first_line(registry.factory(name)), registry.origin(name))
                for name in registry.names()
            ]
        parts.append(plain(rows, headers=[kind, "", "from"]))
    broken = [
        f"{registry.kind} {name} failed to import: {reason}"
        for registry in (registries()[kind] for kind in kinds if kind in KINDS)
        for name, reason in registry.broken.items()
    ]
    return "\n\n".join([*parts, *broken])


def description(name: str) -> str:
    """Describe every plugin and suite of this name, or the recipe. Raises `InvalidInput` if there
    is none."""
    known: list[str] = list(SUITES)
    parts = []
    for registry in registries().values():
        known += registry.names()
        if name in registry.names():
            parts.append(_describe(registry, name))
    if name in SUITES or name.lower().endswith(SUFFIX):
        found = find(name)
        files = {"plugins": tuple(map(str, found.plugins))} if found.plugins else {}
        fields = vars(found.suite) | files
        rows = [
            (key, "all, or the defaults" if value in ({}, ()) else value)
            for key, value in fields.items()
        ]
        parts.append(f"suite {name}\n\n{plain(rows)}")
    if name == "recipe":
        parts.append(_describe_recipe())
    known.append("recipe")
    require(
        bool(parts),
        f"unknown plugin or suite {name!r}{spec.did_you_mean(name, dict.fromkeys(known))}",
    )
    return "\n\n\n".join(parts)


def _describe(registry: Registry[Any], name: str) -> str:
    factory = registry.factory(name)
    parts = [
        f"{registry.kind} {name} (version {registry.version(name)}, {registry.origin(name)})",
        about_module(factory),
        about_fields(factory),
        _fields(factory),
    ]
    if registry.kind == "defense":
        from bdbench.cells.declared import clean_needs, defense_passes
        from bdbench.models.training.recipe import Recipe

        recipe, defense, images = Recipe(), registry.build(name), 50_000
        cost = defense_passes(defense, recipe, images, name) / (3 * recipe.epochs)
        share, least = clean_needs(defense, name)
        at_least = f", at least {least} of each class"
        parts.append(
            f"clean images: {100 * share:g} % of the training set"
            f"{at_least if least > 2 else ''}\n"
            f"expected work: {cost:.2f} times a plain training of {recipe.epochs} epochs on "
            f"{images:,} images"
        )
    if registry.kind == "model":
        count = sum(values.numel() for values in registry.build(name).build(10, 32).parameters())
        parts.append(f"{count:,} parameters for 10 classes and 32 x 32 pixels")
    return "\n\n".join(part for part in parts if part)


def _describe_recipe() -> str:
    from bdbench.models.training.recipe import Recipe

    title = 'recipe, for --recipe "recipe(epochs=20)"'
    return "\n\n".join([title, about_fields(Recipe), _fields(Recipe)])


def _fields(factory: Any) -> str:
    """A table of the fields of a plugin or the recipe; empty if it has none."""
    rows = [
        (field.name, field.shown, repr(field.default)) for field in spec.fields_of(factory).values()
    ]
    return plain(rows, headers=["field", "type", "default"]) if rows else ""


def _first_line(factory: Any) -> str:
    """The first paragraph of the docstring of the module, which names method, authors and year. A
    module may register several functions, so a function has its own."""
    doc = about_fields(factory) if inspect.isfunction(factory) else ""
    text = doc or about_module(factory)
    return " ".join(text.split("\n\n")[0].split())

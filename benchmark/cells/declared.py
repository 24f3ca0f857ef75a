"""What plugins say of themselves before anything runs: their work, the clean images that a defense
needs, and what a data set is."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeVar

from bdbench.attacks.base import Attack
from bdbench.datasets.base import Source
from bdbench.defenses.base import Defense
from bdbench.models.plugins.blame import location, reason
from bdbench.models.plugins.errors import SIGNALS, InvalidInput, require
from bdbench.models.training.recipe import Recipe

T = TypeVar("T")


@dataclass(frozen=True)
class DeclaredWork:
    """The work that the plugins of a cell announce.

    attack, defense: forward passes per training image, see `cost`
    undefended: networks that are trained without a defense
    unknown: why a plugin cannot say one of these, which then is that of its base class
    """

    attack: float
    defense: float
    undefended: int
    unknown: tuple[str, ...]


def declared_work(
    attack: Attack, defense: Defense, recipe: Recipe, images: int, labels: dict[str, str]
) -> DeclaredWork:
    """The work for a training set of so many images.

    labels: what messages call the plugins, by axis
    """
    unknown: list[str] = []

    def known(ask: Callable[[], T], otherwise: T) -> T:
        try:
            return ask()
        except InvalidInput as error:
            unknown.append(str(error))
            return otherwise

    return DeclaredWork(
        known(
            lambda: attack_passes(attack, recipe, images, labels["attack"]),
            Attack.cost(attack, recipe, images),
        ),
        known(
            lambda: defense_passes(defense, recipe, images, labels["defense"]),
            Defense.cost(defense, recipe, images),
        ),
        known(lambda: undefended(defense, labels["defense"]), 0),
        tuple(unknown),
    )


def attack_passes(attack: Attack, recipe: Recipe, images: int, label: str) -> float:
    """Its `cost`. Raises `InvalidInput` if it fails, or is not a finite number of at least 0."""
    return _amount(f"cost of attack {label}", attack, "cost", recipe, images)


def defense_passes(defense: Defense, recipe: Recipe, images: int, label: str) -> float:
    """Its `cost`, as for an attack."""
    return _amount(f"cost of defense {label}", defense, "cost", recipe, images)


def undefended(defense: Defense, label: str) -> int:
    """The number of undefended networks that it needs. Raises `InvalidInput` if asking for it
    fails, or if it is not an integer of at least 0."""
    return _count(f"undefended of defense {label}", defense, "undefended")


def clean_needs(defense: Defense, label: str) -> tuple[float, int]:
    """Its `clean_fraction` and `clean_images`. Raises `InvalidInput` if asking for one fails, or if
    it is not a share in [0, 1) or a number of at least 2, of which a share of 0 has no need."""
    what = f"clean_fraction of defense {label}"
    share = _told(what, defense, "clean_fraction")
    valid = isinstance(share, Real) and 0 <= float(share) < 1
    where = _place(defense, "clean_fraction")
    require(valid, f"{what} must be at least 0 and below 1, got {share!r}{where}")
    if not share:
        return 0.0, 2
    return float(share), _count(f"clean_images of defense {label}", defense, "clean_images", 2)


def num_classes(source: Source) -> int:
    """Of a data set. Raises `InvalidInput` as `undefended` does."""
    return _count(f"num_classes of data set {type(source).__name__}", source, "num_classes")


def recipe_defaults(source: Source) -> dict[str, Any]:
    """The fields of a recipe that a data set decides. Raises `InvalidInput` if asking fails."""
    return {
        field: _told(f"{field} of data set {type(source).__name__}", source, field)
        for field in ("learning_rate", "flip")
    }


def _amount(what: str, plugin: object, member: str, *arguments: Any) -> float:
    value = _told(what, plugin, member, *arguments)
    valid = isinstance(value, Real) and math.isfinite(value) and float(value) >= 0
    where = _place(plugin, member)
    require(valid, f"{what} must be a finite number of at least 0, got {value!r}{where}")
    return float(value)


def _count(what: str, plugin: object, member: str, least: int = 0) -> int:
    value = _told(what, plugin, member)
    valid = isinstance(value, Integral) and int(value) >= least
    where = _place(plugin, member)
    require(valid, f"{what} must be an integer of at least {least}, got {value!r}{where}")
    return int(value)


def _told(what: str, plugin: object, member: str, *arguments: Any) -> Any:
    """The value of an attribute, or of a method that takes arguments. Raises `InvalidInput` for
    whatever the code of the plugin raises."""
    try:
        value = getattr(plugin, member)
        return value(*arguments) if arguments else value
    except (InvalidInput, *SIGNALS):
        raise
    except BaseException as error:
        found = location(error)
        where = f" at line {found[1]} of {found[0]}" if found else _place(plugin, member)
        raise InvalidInput(f"{what} failed{where}: {reason(error)}", of_code=True) from error


def _place(plugin: object, member: str) -> str:
    """Where a plugin defines a method or a property; empty for anything else."""
    defined = inspect.getattr_static(plugin, member, None)
    code = getattr(getattr(defined, "fget", defined), "__code__", None)
    return f" at line {code.co_firstlineno} of {code.co_filename}" if code else ""

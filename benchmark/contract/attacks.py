"""What an attack promises."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bdbench.attacks.base import Attack, Poisoned
from bdbench.contract.others import made, made_by
from bdbench.contract.promises import promise
from bdbench.contract.scenarios import (
    FEWER,
    RECIPE,
    SIDE,
    TOY,
    Drawn,
    expect,
    frozen,
    goes_on,
    lent,
    pictures,
    replays,
    same,
    untouched,
    whole_cell,
)
from bdbench.models.data import ImageSet
from bdbench.models.plugins.registry import Registry
from bdbench.models.rng import stream


@dataclass(frozen=True)
class Tried:
    """What there is to see of an attack that was prepared, has stamped and has poisoned once.

    drawn: from which global generator, in words; empty if from none
    """

    attack: Attack
    data: ImageSet
    stamped: Any
    poisoned: Any
    drawn: str


@functools.lru_cache(maxsize=1)
def tried(registry: Registry[Any], name: str, factory: Any) -> Tried:
    """A trial that several promises look at."""
    attack, drawn = registry.build(name), ""
    data = pictures(60 if attack.trains else 430, SIDE, 10)
    expect(frozen(attack), "it is not a frozen dataclass")
    try:
        with untouched("it"):
            attack = attack.prepare(data, lent(data), stream(0, "poison"))
            expect(isinstance(attack, Attack), f"prepare returns {_kind(attack)} and no attack")
            stamped = attack.trigger(data.images.clone())
            poisoned = attack.poison(data, stream(0, "poison"))
    except Drawn as error:
        drawn = str(error)
    return Tried(attack, data, stamped, poisoned, drawn)


@promise("attack", "it stamps its trigger, and poisons a training set", made)
def works(registry: Registry[Any], name: str) -> None:
    seen = tried(registry, name, made_by(registry, name))
    stamped, poisoned, count = seen.stamped, seen.poisoned, len(seen.data)
    expect(isinstance(stamped, Tensor), f"its trigger returns {_kind(stamped)} and not a tensor")
    expect(stamped.dtype == torch.uint8, f"its trigger returns {stamped.dtype} and not uint8")
    shape = tuple(stamped.shape)
    expect(shape == seen.data.images.shape, f"its trigger returns the shape {shape}")
    expect(
        isinstance(poisoned, Poisoned),
        f"poison returns {_kind(poisoned)} and not bdbench.attacks.Poisoned",
    )
    for part, rows in (("mask", poisoned.mask), ("cover", poisoned.cover)):
        fits = isinstance(rows, Tensor) and rows.dtype == torch.bool and rows.shape == (count,)
        expect(fits, f"{part} is not bool ({count},)")


@promise("attack", "it draws from the random stream that it is given alone", works)
def attack_draws(registry: Registry[Any], name: str) -> None:
    drawn = tried(registry, name, made_by(registry, name)).drawn
    expect(not drawn, drawn)


@promise("attack", "its trigger is a function of the image alone", attack_draws)
def pure_trigger(registry: Registry[Any], name: str) -> None:
    attack, data = tried(registry, name, made_by(registry, name)).attack, pictures(60, SIDE, 10)
    before = data.images.clone()
    once, again = attack.trigger(data.images), attack.trigger(data.images)
    expect(torch.equal(data.images, before), "its trigger writes into the images it is given")
    expect(torch.equal(once, again), "its trigger differs from one call to the next")
    alone = torch.cat([attack.trigger(data.images[n : n + 1]) for n in range(5)])
    expect(torch.equal(once[:5], alone), "an image's trigger depends on the others in its batch")


@promise(
    "attack",
    "it poisons what it says, for any size and number of classes, and nothing else",
    pure_trigger,
)
def honest_poison(registry: Registry[Any], name: str) -> None:
    attack = registry.build(name)
    # Beside a network that is trained, small images show the same.
    for size, classes in ((SIDE, 43), (32, 10)) if attack.trains else ((32, 43), (64, 10)):
        attack = registry.build(name)
        data = pictures(60 if attack.trains else 430, size, classes)
        images, labels = data.images.clone(), data.labels.clone()
        attack = attack.prepare(data, lent(data), stream(7, "poison"))
        one, again = (attack.poison(data, stream(7, "poison")) for _ in range(2))
        where = f"with {classes} classes of {size} pixels"
        expect(same(data, images, labels), f"poison writes into the clean set {where}")
        expect(not (one.mask & one.cover).any(), f"mask and cover overlap {where}")
        left = ~(one.mask | one.cover)
        expect(
            torch.equal(one.train.images[left], images[left]),
            f"images outside mask and cover were changed {where}",
        )
        expect(
            torch.equal(one.train.labels[~one.mask], labels[~one.mask]),
            f"labels outside the mask were changed {where}",
        )
        goal = attack.goal(labels, classes)
        expect(
            torch.equal(one.train.labels[one.mask], goal[one.mask]),
            f"the labels of poisoned images are not its goal {where}",
        )
        expect(
            same(one.train, again.train.images, again.train.labels),
            f"the same random stream gives another training set {where}",
        )
        expect(bool(one.mask.any()) == (attack.poisoning_rate > 0), f"it poisons nothing {where}")


@promise("attack", "it goes through a whole cell, from clean images to the record", honest_poison)
def attack_cell(registry: Registry[Any], name: str) -> None:
    # The rates of those that train nothing may be small.
    whole_cell(name, "none", FEWER if registry.build(name).trains else TOY)


@promise("attack", "broken off while it is prepared, it goes on and ends the same", attack_cell)
def attack_goes_on(registry: Registry[Any], name: str) -> None:
    if registry.build(name).trains:
        goes_on(name, "none")


@promise("attack", "its steps can be recorded for a GPU, and replayed", pure_trigger)
def attack_replays(registry: Registry[Any], name: str) -> None:
    attack, data = registry.build(name), pictures(60, SIDE, 10)

    def prepare() -> Tensor:
        means = replace(lent(data), recipe=replace(RECIPE, epochs=2))
        ready = attack.prepare(data, means, stream(0, "poison"))
        poisoned: Tensor = ready.poison(data, stream(0, "poison")).train.images
        return torch.cat([poisoned, ready.trigger(data.images)])

    if attack.trains:
        replays(prepare)


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"

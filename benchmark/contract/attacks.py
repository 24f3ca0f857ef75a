"""The promises of an attack."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bdbench.attacks.base import Attack, Poisoned
from bdbench.attacks.compound import Compound, PoisonedInParts
from bdbench.cells.declared import attack_passes
from bdbench.contract.common import can_be_built, factory_of, specs
from bdbench.contract.promises import promise
from bdbench.contract.scenarios import (
    RECIPE,
    SIDE,
    GlobalDraw,
    expect,
    few_images,
    frozen,
    no_global_draws,
    random_images,
    replays,
    resumes,
    run_whole_cell,
    same,
    training_context,
)
from bdbench.models.data import ImageSet
from bdbench.models.plugins.registry import Registry
from bdbench.models.rng import stream


@dataclass(frozen=True)
class AttackRun:
    """The results of an attack after `prepare`, `trigger` and `poison`.

    drawn: the message about a global generator that it drew from; empty if from none
    """

    attack: Attack
    data: ImageSet
    stamped: Any
    poisoned: Any
    drawn: str


@functools.lru_cache(maxsize=1)
def run_attack(registry: Registry[Any], name: str, factory: Any) -> AttackRun:
    """One run of an attack, which several promises inspect."""
    attack, drawn = registry.build(name), ""
    data = random_images(60 if attack.trains else 430, SIDE, 10)
    expect(frozen(attack), "it is not a frozen dataclass")
    try:
        with no_global_draws("it"):
            attack = attack.prepare(data, training_context(data), stream(0, "poison"))
            expect(isinstance(attack, Attack), f"prepare returns {_kind(attack)}, not an attack")
            stamped = attack.trigger(data.images.clone())
            poisoned = attack.poison(data, stream(0, "poison"))
    except GlobalDraw as error:
        drawn = str(error)
    return AttackRun(attack, data, stamped, poisoned, drawn)


@promise("attack", "it stamps its trigger and poisons a training set", can_be_built)
def works(registry: Registry[Any], name: str) -> None:
    run = run_attack(registry, name, factory_of(registry, name))
    stamped, poisoned, count = run.stamped, run.poisoned, len(run.data)
    expect(isinstance(stamped, Tensor), f"its trigger returns {_kind(stamped)}, not a tensor")
    expect(stamped.dtype == torch.uint8, f"its trigger returns {stamped.dtype}, not uint8")
    shape, expected = tuple(stamped.shape), tuple(run.data.images.shape)
    expect(shape == expected, f"its trigger returns the shape {shape}, not {expected}")
    expect(
        isinstance(poisoned, Poisoned),
        f"poison returns {_kind(poisoned)}, not a bdbench.attacks.Poisoned",
    )
    unprepared = registry.build(name)
    attack_passes(unprepared, RECIPE, count, name)
    lacking = unprepared.lacks(training_context(run.data).build(), run.data.size[0])
    expect(lacking == "", f"lacks() says that wrn16_1 lacks {lacking!r}, but prepare ran with it")
    for part, rows in (("mask", poisoned.mask), ("cover", poisoned.cover)):
        fits = isinstance(rows, Tensor) and rows.dtype == torch.bool and rows.shape == (count,)
        expect(fits, f"{part} is not a bool tensor ({count},)")


@promise("attack", "it draws random numbers from the given stream only", works)
def attack_draws(registry: Registry[Any], name: str) -> None:
    drawn = run_attack(registry, name, factory_of(registry, name)).drawn
    expect(not drawn, drawn)


@promise("attack", "its trigger depends on the image only", attack_draws)
def pure_trigger(registry: Registry[Any], name: str) -> None:
    attack = run_attack(registry, name, factory_of(registry, name)).attack
    data = random_images(60, SIDE, 10)
    before = data.images.clone()
    once, again = attack.trigger(data.images), attack.trigger(data.images)
    expect(torch.equal(data.images, before), "its trigger modifies its input in place")
    expect(torch.equal(once, again), "its trigger differs between two calls")
    alone = torch.cat([attack.trigger(data.images[n : n + 1]) for n in range(5)])
    expect(
        torch.equal(once[:5], alone),
        "the trigger of an image depends on other images in its batch",
    )


@promise(
    "attack",
    "it changes exactly the images and labels that it declares, for any image size and number of "
    "classes",
    pure_trigger,
)
def declared_changes(registry: Registry[Any], name: str) -> None:
    attack = registry.build(name)
    # Attacks that train a network are slow: few small images must suffice for them, five or six of
    # each class, of which an attack may poison a quarter.
    for size, classes in ((SIDE, 12), (32, 10)) if attack.trains else ((32, 43), (64, 10)):
        attack = registry.build(name)
        data = random_images(60 if attack.trains else 430, size, classes)
        images, labels = data.images.clone(), data.labels.clone()
        attack = attack.prepare(data, training_context(data), stream(7, "poison"))
        one, again = (attack.poison(data, stream(7, "poison")) for _ in range(2))
        where = f"with {classes} classes of {size} pixels"
        expect(same(data, images, labels), f"poison modifies the clean set in place {where}")
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
        for part, mask in _parts(attack, one):
            goal = part.goal(labels, classes)
            expect(
                torch.equal(one.train.labels[mask], goal[mask]),
                f"the labels of poisoned images are not those of goal() {where}",
            )
        expect(
            same(one.train, again.train.images, again.train.labels),
            f"the same random stream gives different training sets {where}",
        )
        expect(bool(one.mask.any()) == (attack.poisoning_rate > 0), f"it poisons nothing {where}")


@promise(
    "attack",
    "it runs in a whole cell, from clean images to the record",
    specs,
    declared_changes,
)
def attack_cell(registry: Registry[Any], name: str) -> None:
    # At a small rate, more images are needed for one to be poisoned.
    rate = registry.build(name).poisoning_rate
    count = max(100, min(math.ceil(1 / rate), 2000)) if rate else 100
    run_whole_cell(name, "none", few_images(count))


@promise("attack", "interrupted in prepare, it resumes with the same result", attack_cell)
def attack_resumes(registry: Registry[Any], name: str) -> None:
    if registry.build(name).trains:
        resumes(name, "none")


@promise("attack", "a GPU can capture and replay its training steps", pure_trigger)
def attack_replays(registry: Registry[Any], name: str) -> None:
    attack, data = registry.build(name), random_images(60, SIDE, 10)

    def prepare() -> Tensor:
        context = replace(training_context(data), recipe=replace(RECIPE, epochs=2))
        ready = attack.prepare(data, context, stream(0, "poison"))
        poisoned: Tensor = ready.poison(data, stream(0, "poison")).train.images
        return torch.cat([poisoned, ready.trigger(data.images)])

    if attack.trains:
        replays(prepare)


def _parts(attack: Attack, poisoned: Poisoned) -> Iterator[tuple[Attack, Tensor]]:
    """An attack and its mask, or those of its parts, which must be disjoint and all that it has."""
    if not isinstance(attack, Compound):
        yield attack, poisoned.mask
        return
    expect(isinstance(poisoned, PoisonedInParts), "poison returns no PoisonedInParts")
    assert isinstance(poisoned, PoisonedInParts)
    masks, covers = poisoned.masks, poisoned.covers
    named = masks.keys() == covers.keys() == attack.parts.keys()
    expect(named, "poison does not return a mask and a cover of each part")
    owners = torch.stack([*masks.values(), *covers.values()]).int().sum(0)
    expect(torch.equal(owners, (poisoned.mask | poisoned.cover).int()), "its parts overlap")
    yield from ((part, masks[name]) for name, part in attack.parts.items())


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"

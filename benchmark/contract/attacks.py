"""What an attack promises."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bdbench.attacks.base import Attack, Poisoned
from bdbench.contract.promises import promise
from bdbench.contract.scenarios import (
    RECIPE,
    SIDE,
    expect,
    frozen,
    goes_on,
    lent,
    pictures,
    replays,
    same,
    whole_cell,
)
from bdbench.models.plugins.registry import Registry
from bdbench.models.rng import stream


@promise("attack", "it keeps its settings, and its trigger is a function of the image alone")
def pure_trigger(registry: Registry[Any], name: str) -> None:
    attack, data = registry.build(name), pictures(60, SIDE, 10)
    expect(isinstance(attack, Attack), "it is not a subclass of bdbench.attacks.Attack")
    expect(frozen(attack), "it is not a frozen dataclass")
    attack = attack.prepare(data, lent(data), stream(0, "poison"))
    before = data.images.clone()
    once, again = attack.trigger(data.images), attack.trigger(data.images)
    expect(once.dtype == torch.uint8, f"its trigger returns {once.dtype} and not uint8")
    expect(once.shape == before.shape, f"its trigger returns the shape {tuple(once.shape)}")
    expect(torch.equal(data.images, before), "its trigger writes into the images it is given")
    expect(torch.equal(once, again), "its trigger differs from one call to the next")
    alone = torch.cat([attack.trigger(data.images[n : n + 1]) for n in range(5)])
    expect(torch.equal(once[:5], alone), "an image's trigger depends on the others in its batch")


@promise("attack", "it poisons what it says, for any size and number of classes, and nothing else")
def honest_poison(registry: Registry[Any], name: str) -> None:
    for size, classes in ((32, 43), (64, 10)):
        attack = registry.build(name)
        data = pictures(60 if attack.trains else 430, size, classes)
        images, labels = data.images.clone(), data.labels.clone()
        attack = attack.prepare(data, lent(data), stream(7, "poison"))
        made, again = (attack.poison(data, stream(7, "poison")) for _ in range(2))
        where = f"with {classes} classes of {size} pixels"
        expect(isinstance(made, Poisoned), "poison does not return bdbench.attacks.Poisoned")
        for part, rows in (("mask", made.mask), ("cover", made.cover)):
            expect(
                rows.dtype == torch.bool and rows.shape == labels.shape,
                f"{part} is not bool ({len(labels)},) {where}",
            )
        expect(same(data, images, labels), f"poison writes into the clean set {where}")
        expect(not (made.mask & made.cover).any(), f"mask and cover overlap {where}")
        left = ~(made.mask | made.cover)
        expect(
            torch.equal(made.train.images[left], images[left]),
            f"images outside mask and cover were changed {where}",
        )
        expect(
            torch.equal(made.train.labels[~made.mask], labels[~made.mask]),
            f"labels outside the mask were changed {where}",
        )
        goal = attack.goal(labels, classes)
        expect(
            torch.equal(made.train.labels[made.mask], goal[made.mask]),
            f"the labels of poisoned images are not its goal {where}",
        )
        expect(
            same(made.train, again.train.images, again.train.labels),
            f"the same random stream gives another training set {where}",
        )
        expect(bool(made.mask.any()) == (attack.poisoning_rate > 0), f"it poisons nothing {where}")


@promise("attack", "it goes through a whole cell, from clean images to the record")
def attack_cell(registry: Registry[Any], name: str) -> None:
    whole_cell(name, "none")


@promise("attack", "broken off while it is prepared, it goes on and ends the same")
def attack_goes_on(registry: Registry[Any], name: str) -> None:
    if registry.build(name).trains:
        goes_on(name, "none")


@promise("attack", "its steps can be recorded for a GPU, and replayed")
def attack_replays(registry: Registry[Any], name: str) -> None:
    attack, data = registry.build(name), pictures(60, SIDE, 10)

    def prepare() -> Tensor:
        means = replace(lent(data), recipe=replace(RECIPE, epochs=2))
        made = attack.prepare(data, means, stream(0, "poison"))
        poisoned: Tensor = made.poison(data, stream(0, "poison")).train.images
        return torch.cat([poisoned, made.trigger(data.images)])

    if attack.trains:
        replays(prepare)

"""What a defense promises."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bdbench.contract.others import made, made_by
from bdbench.contract.promises import promise
from bdbench.contract.scenarios import (
    RECIPE,
    SIDE,
    Drawn,
    context,
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
from bdbench.defenses.base import Context, Defense
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier, check_network
from bdbench.models.plugins.registry import Registry
from bdbench.models.training.loop import logits


@dataclass(frozen=True)
class Fitted:
    """What there is to see of a defense that has been fitted once.

    before: its settings, in words
    asked: the numbers of the undefended networks that it asked for
    drawn: from which global generator, in words; empty if from none
    """

    defense: Defense
    before: str
    data: ImageSet
    means: Context
    made: Any
    asked: frozenset[int]
    drawn: str


@functools.lru_cache(maxsize=1)
def fitted(registry: Registry[Any], name: str, factory: Any) -> Fitted:
    """A fit that several promises look at."""
    defense, data, asked, drawn = registry.build(name), pictures(60, SIDE, 10), set(), ""
    before, fraction = repr(defense), defense.clean_fraction
    expect(0 <= fraction < 1, f"its clean_fraction is {fraction} and not in [0, 1)")
    means = context(data, fraction)

    def lend(n: int) -> Classifier:
        asked.add(n)
        return context(data, fraction).undefended(n)

    try:
        with untouched("it"):
            made = defense.fit(data, replace(means, train_undefended=lend))
    except Drawn as error:
        drawn = str(error)
    return Fitted(defense, before, data, means, made, frozenset(asked), drawn)


@promise("defense", "fit returns a classifier", made)
def gives_classifier(registry: Registry[Any], name: str) -> None:
    seen = fitted(registry, name, made_by(registry, name))
    check_network(seen.made, seen.data.num_classes, "it", "fit")
    answers = logits(seen.made, seen.data.images)
    expect(answers.shape == (60, 10), f"its logits have the shape {tuple(answers.shape)}")
    expect(bool(answers.isfinite().all()), "its logits are not finite")


@promise("defense", "it draws from the random streams that it is given alone", gives_classifier)
def defense_draws(registry: Registry[Any], name: str) -> None:
    drawn = fitted(registry, name, made_by(registry, name)).drawn
    expect(not drawn, drawn)


@promise("defense", "it changes nothing it was given, and says what it needs", gives_classifier)
def clean_hands(registry: Registry[Any], name: str) -> None:
    seen = fitted(registry, name, made_by(registry, name))
    defense, data = seen.defense, seen.data
    expect(frozen(defense), "it is not a frozen dataclass")
    expect(defense.cost(RECIPE, len(data)) > 0, "its cost is not above 0")
    lacking = defense.lacks(lent(data).build(), data.size[0])
    expect(lacking == "", f"it says that wrn16_1 lacks {lacking!r}, which it was fitted with")
    expect(
        seen.asked == set(range(defense.undefended)),
        f"it says that it asks for {defense.undefended} undefended networks, and asks for those "
        f"numbered {sorted(seen.asked)}",
    )
    expect(not seen.made.training, "the network it returns is in training mode; call eval()")
    fresh = pictures(60, SIDE, 10)
    expect(same(data, fresh.images, fresh.labels), "it writes into the training set")
    expect(repr(defense) == seen.before, "fit changes its settings")
    for kept, values in seen.means.journal.samples.items():
        expect(values.shape == (60,), f"the journal's {kept!r} has the shape {tuple(values.shape)}")


@promise("defense", "it is a function of its seed", defense_draws, clean_hands)
def seeded(registry: Registry[Any], name: str) -> None:
    defense, data = registry.build(name), pictures(60, SIDE, 10)
    fraction = defense.clean_fraction
    one, two, other = (
        logits(defense.fit(data, context(data, fraction, seed)), data.images) for seed in (0, 0, 1)
    )
    expect(torch.equal(one, two), "the same seed gives another network")
    expect(not torch.equal(one, other), "another seed gives the same network")


@promise("defense", "it goes through a whole cell, from poisoned images to the record", clean_hands)
def defense_cell(registry: Registry[Any], name: str) -> None:
    whole_cell("badnets", name)


@promise("defense", "broken off anywhere, it goes on and ends the same", seeded, defense_cell)
def defense_goes_on(registry: Registry[Any], name: str) -> None:
    goes_on("badnets", name)


@promise("defense", "its steps can be recorded for a GPU, and replayed", seeded)
def defense_replays(registry: Registry[Any], name: str) -> None:
    defense, data = registry.build(name), pictures(60, SIDE, 10)

    def fit() -> Tensor:
        means = context(data, defense.clean_fraction)
        means = replace(means, recipe=replace(RECIPE, epochs=2))
        return logits(defense.fit(data, means), data.images)

    replays(fit)

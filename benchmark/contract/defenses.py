"""What a defense promises."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bdbench.contract.promises import promise
from bdbench.contract.scenarios import (
    RECIPE,
    SIDE,
    context,
    expect,
    frozen,
    goes_on,
    pictures,
    replays,
    same,
    whole_cell,
)
from bdbench.models.networks.classifier import Classifier
from bdbench.models.plugins.registry import Registry
from bdbench.models.training.loop import logits


@promise("defense", "it gives a classifier and changes nothing it was given")
def clean_hands(registry: Registry[Any], name: str) -> None:
    defense, data = registry.build(name), pictures(60, SIDE, 10)
    fraction = defense.clean_fraction
    expect(0 <= fraction < 1, f"its clean_fraction is {fraction} and not in [0, 1)")
    expect(frozen(defense), "it is not a frozen dataclass")
    expect(defense.cost(RECIPE, len(data)) > 0, "its cost is not above 0")
    images, labels, settings = data.images.clone(), data.labels.clone(), repr(defense)
    torch.manual_seed(3)
    follows = torch.rand(1)
    torch.manual_seed(3)
    means, asked = context(data, fraction), set()

    def lend(n: int) -> Classifier:
        asked.add(n)
        return context(data, fraction).undefended(n)

    made = defense.fit(data, replace(means, train_undefended=lend))
    expect(
        asked == set(range(defense.undefended)),
        f"it says that it asks for {defense.undefended} undefended networks, and asks for those "
        f"numbered {sorted(asked)}",
    )
    expect(
        torch.equal(torch.rand(1), follows),
        "it draws from torch's global generator; use context.rng or bdbench.models.rng.global_seed",
    )
    expect(isinstance(made, Classifier), f"fit returns {type(made).__name__}, not a Classifier")
    expect(not made.training, "the network it returns is in training mode; call eval()")
    answers = logits(made, data.images)
    expect(answers.shape == (60, 10), f"its logits have the shape {tuple(answers.shape)}")
    expect(bool(answers.isfinite().all()), "its logits are not finite")
    expect(same(data, images, labels), "it writes into the training set")
    expect(repr(defense) == settings, "fit changes its settings")
    for kept, values in means.journal.samples.items():
        expect(values.shape == (60,), f"the journal's {kept!r} has the shape {tuple(values.shape)}")


@promise("defense", "it is a function of its seed")
def seeded(registry: Registry[Any], name: str) -> None:
    defense, data = registry.build(name), pictures(60, SIDE, 10)
    fraction = defense.clean_fraction
    one, two, other = (
        logits(defense.fit(data, context(data, fraction, seed)), data.images) for seed in (0, 0, 1)
    )
    expect(torch.equal(one, two), "the same seed gives another network")
    expect(not torch.equal(one, other), "another seed gives the same network")


@promise("defense", "it goes through a whole cell, from poisoned images to the record")
def defense_cell(registry: Registry[Any], name: str) -> None:
    whole_cell("badnets", name)


@promise("defense", "broken off anywhere, it goes on and ends the same")
def defense_goes_on(registry: Registry[Any], name: str) -> None:
    goes_on("badnets", name)


@promise("defense", "its steps can be recorded for a GPU, and replayed")
def defense_replays(registry: Registry[Any], name: str) -> None:
    defense, data = registry.build(name), pictures(60, SIDE, 10)

    def fit() -> Tensor:
        means = context(data, defense.clean_fraction)
        means = replace(means, recipe=replace(RECIPE, epochs=2))
        return logits(defense.fit(data, means), data.images)

    replays(fit)

"""The promises of a defense."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bdbench.contract.common import can_be_built, factory_of, specs
from bdbench.contract.promises import promise
from bdbench.contract.scenarios import (
    RECIPE,
    SIDE,
    GlobalDraw,
    defense_context,
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
from bdbench.defenses.base import Context, Defense
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier, check_network
from bdbench.models.plugins.registry import Registry
from bdbench.models.training.loop import logits


@dataclass(frozen=True)
class FitRun:
    """The results of one `fit` of a defense.

    before: the repr of the defense before
    asked: the numbers of the undefended networks that it requested
    drawn: the message about a global generator that it drew from; empty if from none
    """

    defense: Defense
    before: str
    data: ImageSet
    context: Context
    result: Any
    asked: frozenset[int]
    drawn: str


@functools.lru_cache(maxsize=1)
def run_fit(registry: Registry[Any], name: str, factory: Any) -> FitRun:
    """One run of `fit`, which several promises inspect."""
    defense, data, asked, drawn = registry.build(name), random_images(60, SIDE, 10), set(), ""
    before, fraction = repr(defense), defense.clean_fraction
    expect(0 <= fraction < 1, f"its clean_fraction is {fraction}, which is not in [0, 1)")
    context = defense_context(data, fraction)

    def undefended(n: int) -> Classifier:
        asked.add(n)
        return defense_context(data, fraction).undefended(n)

    try:
        with no_global_draws("it"):
            result = defense.fit(data, replace(context, train_undefended=undefended))
    except GlobalDraw as error:
        drawn = str(error)
    return FitRun(defense, before, data, context, result, frozenset(asked), drawn)


@promise("defense", "fit returns a classifier", can_be_built)
def gives_classifier(registry: Registry[Any], name: str) -> None:
    run = run_fit(registry, name, factory_of(registry, name))
    check_network(run.result, run.data.num_classes, run.data.size[0], "it", "fit")
    outputs = logits(run.result, run.data.images)
    shape = tuple(outputs.shape)
    expect(shape == (60, 10), f"the logits of its network have the shape {shape}, not (60, 10)")
    expect(bool(outputs.isfinite().all()), "the logits of its network are not finite")


@promise("defense", "it draws random numbers from the given streams only", gives_classifier)
def defense_draws(registry: Registry[Any], name: str) -> None:
    drawn = run_fit(registry, name, factory_of(registry, name)).drawn
    expect(not drawn, drawn)


@promise("defense", "it modifies no argument, and declares what it needs", gives_classifier)
def modifies_nothing(registry: Registry[Any], name: str) -> None:
    run = run_fit(registry, name, factory_of(registry, name))
    defense, data = run.defense, run.data
    expect(frozen(defense), "it is not a frozen dataclass")
    expect(defense.cost(RECIPE, len(data)) > 0, "its cost is not above 0")
    lacking = defense.lacks(training_context(data).build(), data.size[0])
    expect(lacking == "", f"lacks() says that wrn16_1 lacks {lacking!r}, but fit ran with it")
    expect(
        run.asked == set(range(defense.undefended)),
        f"it declares {defense.undefended} undefended networks, but requests those numbered "
        f"{sorted(run.asked)}",
    )
    expect(not run.result.training, "the network it returns is in training mode; call eval()")
    fresh = random_images(60, SIDE, 10)
    expect(same(data, fresh.images, fresh.labels), "it modifies the training set in place")
    expect(repr(defense) == run.before, "fit changes its settings")
    for sample, values in run.context.journal.samples.items():
        shape = tuple(values.shape)
        expect(shape == (60,), f"{sample!r} in the journal has the shape {shape}, not (60,)")


@promise("defense", "its result depends on the seed only", defense_draws, modifies_nothing)
def seeded(registry: Registry[Any], name: str) -> None:
    run, data = run_fit(registry, name, factory_of(registry, name)), random_images(60, SIDE, 10)
    fraction = run.defense.clean_fraction
    again, others = (
        registry.build(name).fit(data, defense_context(data, fraction, seed)) for seed in (0, 1)
    )
    one, two, other = (logits(network, data.images) for network in (run.result, again, others))
    expect(torch.equal(one, two), "the same seed gives different networks")
    expect(not torch.equal(one, other), "different seeds give the same network")


@promise(
    "defense",
    "it runs in a whole cell, from poisoned images to the record",
    specs,
    modifies_nothing,
)
def defense_cell(registry: Registry[Any], name: str) -> None:
    run_whole_cell("badnets", name, few_images(100, name))


@promise("defense", "interrupted anywhere, it resumes with the same result", seeded, defense_cell)
def defense_resumes(registry: Registry[Any], name: str) -> None:
    resumes("badnets", name)


@promise("defense", "a GPU can capture and replay its training steps", seeded)
def defense_replays(registry: Registry[Any], name: str) -> None:
    defense, data = registry.build(name), random_images(60, SIDE, 10)

    def fit() -> Tensor:
        context = defense_context(data, defense.clean_fraction)
        context = replace(context, recipe=replace(RECIPE, epochs=2))
        return logits(defense.fit(data, context), data.images)

    replays(fit)

"""A training step of every defense, in images that are trained on.

The bench times steps and batches inside the loops of a short `fit`, for each image of each pass. It
does not time the code between two loops. It times a defense without a loop as a whole.
"""

from __future__ import annotations

import time
from dataclasses import replace
from statistics import median

import pytest
from turns import (
    BARE_STEPS,
    BATCH,
    ROUNDS,
    TINY,
    bare,
    keep,
    lend,
    pictures,
    take_turns,
    times_as_fast,
)

from bdbench.defenses.base import CleanBudget, Context
from bdbench.defenses.registry import defenses
from bdbench.models.networks.classifier import Classifier
from bdbench.models.observer import Observer, observed_by
from bdbench.models.training.loop import train

COUNT = 64 if TINY else 1_024
FIT, VALIDATION = COUNT // 4, COUNT // 16
SPECS = {
    "anp": "anp(updates=8)",
    "cbd": "cbd(t1=1)",
    "fp": "fp(updates=16)",
    "ft": "ft(updates=16)",
    "ft_sam": "ft_sam(updates=4)",
    "i_bau": "i_bau(rounds=1, updates=4)",
    "mcr": "mcr(updates=8)",
    "nad": "nad(teacher_updates=4, updates=16)",
    "neural_cleanse": "neural_cleanse(updates=2, unlearning_updates=8)",
}
"""Settings for methods whose own steps would by default be a small part, or very many."""


class Stopwatch(Observer):
    """seconds: inside loops. images: trained on there, each as often as it was."""

    def __init__(self) -> None:
        self.seconds, self.images, self._begun = 0.0, 0, 0.0

    def loop_started(self, rounds: int, images: int, part: tuple[int, int]) -> None:
        self._begun = time.perf_counter()

    def trained(self, images: int) -> None:
        self.images += images
        now = time.perf_counter()
        self.seconds += now - self._begun
        self._begun = now


@pytest.mark.parametrize("name", defenses.names())
def test_step(name: str, benchmark: object) -> None:
    defense, data, lent = defenses.build(SPECS.get(name, name)), pictures(COUNT), lend()
    clean = CleanBudget(pictures(FIT), pictures(VALIDATION))

    def undefended(n: int) -> Classifier:
        network = replace(lent, seed=n).build().eval()
        # Only for `none` are these the steps to time.
        return train(network, data, lent.recipe, lent.rng("x")) if name == "none" else network

    context = Context(
        **vars(lent),
        clean=clean if defense.clean_fraction else None,
        train_undefended=undefended,
    )
    watches: list[Stopwatch] = []

    def fit() -> None:
        watches.append(Stopwatch())
        with observed_by(watches[-1]):
            defense.fit(data, context)

    seconds = take_turns(benchmark, {"bare": bare(), "fit": fit}, ROUNDS)
    images = watches[0].images
    if images:
        title, reference, work = f"step, {name} / bare step", BARE_STEPS * BATCH, images
        spent = [watch.seconds for watch in watches[-ROUNDS:]]
        print(f"\nstep, {name}: {1e6 * median(spent) / images:,.0f} us for an image and pass")
    else:
        title, reference, work = f"fits, {name} / bare step", BARE_STEPS, 1
        spent = seconds["fit"]
    ratios = times_as_fast(spent, seconds["bare"], reference / work)
    keep(benchmark, {title: ratios}, images=images, batch_size=BATCH)
    if name == "none" and not TINY:
        assert median(ratios) > 0.7

"""Plugins that draw from global generators always give the same record, even after a resume."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from bdbench.attacks import Attack, Poisoned, dirty_label
from bdbench.attacks.registry import attacks
from bdbench.cells.cell import cell
from bdbench.defenses import Context, Defense
from bdbench.defenses.registry import defenses
from bdbench.models import Classifier, ImageSet, train
from bdbench.models.networks.wide_resnet import PreActivationResNet
from bdbench.models.plugins.errors import Signal
from bdbench.models.registry import models
from bdbench.models.rng import GENERATORS, global_seed, seeded
from bdbench.models.training.context import TrainingContext
from bdbench.models.training.parallel import run_parallel
from bdbench.models.training.recipe import Recipe
from bdbench.records.record import encode
from bdbench.storage.cache import Cache
from bdbench.trial.harness import Harness

CPU = torch.device("cpu")
RECIPE = Recipe(epochs=3, batch_size=32, learning_rate=0.02, updates=0.005)
DRAWS: dict[str, Callable[[], float]] = {
    "torch": lambda: float(torch.rand(())),
    "numpy": lambda: float(numpy.random.rand()),
    "python": random.random,
}


class Dropped(PreActivationResNet):
    """Draws random numbers in training."""

    def embed(self, last: Tensor) -> Tensor:
        return nn.functional.dropout(super().embed(last), 0.3, self.training)


def dropped(num_classes: int, image_size: int) -> Dropped:
    """A network with dropout."""
    stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
    return Dropped((16, 32, 64), (1, 1, 1), stem, num_classes, 0.0, 1.0)


@dataclass(frozen=True)
class Scattered(Attack):
    """
    whose: generator it draws from
    """

    whose: str = "torch"

    def trigger(self, images: Tensor) -> Tensor:
        stamped = images.clone()
        stamped[:, :, -3:, -3:] = int(255 * DRAWS[self.whose]())
        return stamped

    def poison(self, clean: ImageSet, rng: torch.Generator) -> Poisoned:
        return dirty_label(self, clean, rng)


@dataclass(frozen=True)
class Noisy(Defense):
    """
    whose: generator it draws from
    """

    whose: str = "torch"

    def fit(self, data: ImageSet, context: Context) -> Classifier:
        network = context.build()

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            return nn.functional.cross_entropy(logits, labels) * (1 + DRAWS[self.whose]())

        return train(network, data, context.recipe, context.rng("classifier"), loss)


@pytest.fixture(autouse=True)
def plugins(unregistered: None) -> None:
    models.register("dropped")(dropped)
    attacks.register("scattered")(Scattered)
    defenses.register("noisy")(Noisy)


CELLS: list[dict[str, str]] = [
    {"model": "dropped"},
    {"model": "dropped", "defense": "ft"},
    {"model": "dropped", "defense": "cbd(t1=1)"},
    *({"attack": f"scattered(whose={whose!r})"} for whose in DRAWS),
    *({"defense": f"noisy(whose={whose!r})"} for whose in DRAWS),
]


def record_of(
    axes: dict[str, str], folder: Path, progress: Callable[[int], None]
) -> dict[str, Any]:
    """The record of a cell, with a checkpoint after every round of its loops."""
    usual = {"model": "wrn16_1", "attack": "badnets", "defense": "none"}
    sizes = "toy(train_images=64, test_images=40, image_size=16)"
    chosen = cell(sizes, **(usual | axes), recipe=RECIPE, seed=0)
    record = Harness(Cache(folder), [], CPU, progress=progress, patience=-1.0).run(chosen)
    assert record.status == "ok", record.error
    return {**encode(record), "measured": None}


class Stopped(Signal):
    pass


@pytest.mark.parametrize("axes", CELLS, ids=lambda axes: " ".join(axes.values()))
def test_a_cell_has_one_record(axes: dict[str, str], tmp_path: Path) -> None:
    alone = record_of(axes, tmp_path / "alone", lambda work: None)
    for draw in DRAWS.values():
        draw()
    assert record_of(axes, tmp_path / "after", lambda work: None) == alone
    steps = iter(range(3))

    def stop(work: int) -> None:
        if next(steps, None) is None:
            raise Stopped

    with pytest.raises(Stopped):
        record_of(axes, tmp_path / "parts", stop)
    for draw in DRAWS.values():
        draw()
    assert record_of(axes, tmp_path / "parts", lambda work: None) == alone
    # The second run uses the cache.
    assert record_of(axes, tmp_path / "after", lambda work: None) == alone


@pytest.mark.parametrize("block", [seeded, global_seed])
def test_a_block_has_its_own_draws_and_restores_the_state(block: Any) -> None:
    def draws() -> list[float]:
        return [draw() for draw in DRAWS.values()]

    GENERATORS.seed(7)
    outside = [draws(), draws()]
    GENERATORS.seed(7)
    first = draws()
    with block(1, "x"):
        inside = draws()
    assert [first, draws()] == outside
    with block(1, "x"):
        assert draws() == inside
    with block(1, "y"):
        assert draws() != inside
    with block(2, "x"):
        assert draws() != inside


@pytest.mark.parametrize("whose", DRAWS)
def test_a_state_is_restored_and_a_draw_changes_the_fingerprint(whose: str) -> None:
    state, seen = GENERATORS.state_dict(), GENERATORS.fingerprint()
    drawn = DRAWS[whose]()
    assert GENERATORS.fingerprint() != seen
    GENERATORS.load_state_dict(state)
    assert GENERATORS.fingerprint() == seen
    assert DRAWS[whose]() == drawn


@pytest.mark.parametrize("whose", DRAWS)
def test_parallel_tasks_may_not_draw_from_a_global_generator(whose: str) -> None:
    with pytest.raises(RuntimeError, match="draw from a global generator"):
        run_parallel([DRAWS[whose]] * 2)
    assert len(run_parallel([DRAWS[whose]] * 2, together=False)) == 2


@pytest.mark.parametrize("layer", [nn.Dropout(0.1), nn.Dropout2d(0.1), nn.RReLU()])
def test_networks_with_random_layers_train_one_after_the_other(layer: nn.Module) -> None:
    def build() -> Classifier:
        network = models.build("wrn16_1").build(10, 16)
        network.random = layer
        return network

    context = TrainingContext(RECIPE, CPU, build, seed=0)
    assert len(context.parallel(*[partial(torch.rand, 1)] * 2)) == 2

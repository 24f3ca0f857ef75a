"""Checkpoints of a cell, in the time that it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from turns import CPU, TINY, keep, seconds_of

from bdbench.cells.cell import cell
from bdbench.models.training.recipe import Recipe
from bdbench.storage.cache import Cache
from bdbench.storage.checkpoints import Checkpoints
from bdbench.trial.harness import Harness

EPOCHS = 2 if TINY else 10
IMAGES = 100 if TINY else 2_000


def test_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, benchmark: Any) -> None:
    spent: list[float] = []
    offer = Checkpoints.offer
    monkeypatch.setattr(
        Checkpoints, "offer", lambda *given: spent.append(seconds_of(lambda: offer(*given)))
    )
    recipe = Recipe(epochs=EPOCHS, batch_size=64, learning_rate=0.01)
    source = f"toy(train_images={IMAGES}, test_images=200)"
    chosen = cell(source, "wrn16_1", "badnets", "none", recipe, seed=0)

    def run() -> None:
        assert Harness(Cache(tmp_path), [], CPU).run(chosen).status == "ok"

    whole = seconds_of(lambda: benchmark.pedantic(run, rounds=1, iterations=1))
    assert len(spent) == EPOCHS
    share = sum(spent) / whole
    keep(benchmark, {"cell without checkpoints / with": [1 - share]}, images=IMAGES)
    if not TINY:
        assert share < 0.02

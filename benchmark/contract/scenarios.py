"""Small worlds in which promises are tried."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy
import torch
from torch import Tensor

from bdbench.cells.cell import cell
from bdbench.contract.host_graph import HostGraph
from bdbench.defenses.base import Context
from bdbench.models.data import ImageSet
from bdbench.models.registry import models
from bdbench.models.rng import stream
from bdbench.models.training.context import TrainingContext
from bdbench.models.training.graphs import recorded_by
from bdbench.models.training.recipe import Recipe
from bdbench.records.record import Record, decode, encode
from bdbench.storage.cache import Cache
from bdbench.trial.clean_budget import clean_budget
from bdbench.trial.harness import Harness

RECIPE = Recipe(epochs=1, batch_size=20, learning_rate=0.05, updates=0.005)
"""Short in epochs, and in updates: the longest stage on lent clean images makes some 40."""
CPU = torch.device("cpu")
SIDE = 16
"""Pixels of an image where any size will do."""


class Broken(Exception):
    """A promise that is not kept; the message says how, as a sentence about the plugin."""


class Untested(Exception):
    """There is nothing to test a promise with; the message says what is missing."""


class Drawn(Broken):
    """A global random generator was drawn from."""


def expect(kept: bool, otherwise: str) -> None:
    """Raises `Broken(otherwise)` unless `kept`."""
    if not kept:
        raise Broken(otherwise)


@contextmanager
def untouched(drawing: str, but_torch: bool = False) -> Iterator[None]:
    """Raises `Drawn` where the work inside leaves a global random generator in another state.

    drawing: the work, as a sentence begins
    but_torch: that of torch may be drawn from
    """
    states: dict[str, Callable[[], Any]] = {
        "torch's": lambda: torch.get_rng_state().tolist(),
        "numpy's": lambda: str(numpy.random.get_state(legacy=False)),
        "Python's": random.getstate,
    }
    if but_torch:
        del states["torch's"]
    before = {whose: state() for whose, state in states.items()}
    yield
    for whose, state in states.items():
        if state() != before[whose]:
            raise Drawn(
                f"{drawing} draws from {whose} global generator; use the random stream that is "
                "given, context.rng or bdbench.models.rng.stream"
            )


def pictures(count: int, size: int, classes: int) -> ImageSet:
    """Random images, as many of each class as there can be."""
    shape = (count, 3, size, size)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=stream(0, "contract"))
    return ImageSet(pixels, torch.arange(count) % classes, classes)


def lent(data: ImageSet, seed: int = 0) -> TrainingContext:
    """The means of a very short training on such images."""
    builder = partial(models.build("wrn16_1").build, data.num_classes, data.size[0])
    return TrainingContext(RECIPE, CPU, builder, seed)


def context(data: ImageSet, clean_fraction: float, seed: int = 0) -> Context:
    """What a defense is lent; undefended networks are not trained."""
    training = lent(data, seed)
    return Context(
        **vars(training),
        clean=clean_budget(data, clean_fraction, seed),
        train_undefended=lambda n: replace(training, seed=seed + 100 * n).build().eval(),
    )


def same(one: ImageSet, images: Tensor, labels: Tensor) -> bool:
    return torch.equal(one.images, images) and torch.equal(one.labels, labels)


TOY, FEWER = (f"toy(train_images={n}, test_images=50, image_size={SIDE})" for n in (400, 100))
"""Data of a whole cell."""


def whole_cell(
    attack: str,
    defense: str,
    dataset: str = TOY,
    roots: Sequence[Path] = (),
    cache: Cache | None = None,
) -> None:
    """Raises `Broken` where the harness fails on a very short cell.

    roots, cache: see `Harness`; by default a cache of its own
    """
    with TemporaryDirectory() as folder:
        harness = Harness(cache or Cache(Path(folder)), roots, CPU)
        record = harness.run(cell(dataset, "wrn16_1", attack, defense, RECIPE, seed=0))
    error = record.error or {"type": "", "message": ""}
    expect(record.status == "ok", f"it fails with {error['type']}: {error['message']}")
    decode(encode(record))


def goes_on(attack: str, defense: str, curves: bool = False) -> int:
    """How often work went on from a checkpoint. Raises `Broken` where a cell that is broken off
    again and again has another record than one that is not."""
    source = f"toy(train_images=64, test_images=20, image_size={SIDE})"
    recipe = replace(RECIPE, epochs=3)
    chosen = cell(source, "wrn16_1", attack, defense, recipe, seed=0)

    def attempt(folder: str, progress: Callable[[int], None]) -> Record:
        # Patience below 0: every round is kept.
        return Harness(Cache(Path(folder)), [], CPU, curves, progress, -1.0).run(chosen)

    steps = [0]
    with TemporaryDirectory() as folder:
        whole = attempt(folder, lambda work: steps.append(steps.pop() + 1))
    with TemporaryDirectory() as folder:
        again, share = None, max(4, steps[0] // 4)
        while again is None:
            left = iter(range(share))

            def progress(work: int, left: Iterator[int] = left) -> None:
                if next(left, None) is None:
                    raise KeyboardInterrupt

            with suppress(KeyboardInterrupt):
                again = attempt(folder, progress)
            # So that it comes further each time.
            share += 2
    one, two = ({**encode(record), "measured": None} for record in (whole, again))
    expect(
        one == two,
        "it ends otherwise than when it is not broken off; name all that a step changes in the "
        "state of its loop, and put a `for` with loops inside into resumable",
    )
    resumed: int = again.measured["resumed"]
    return resumed


def replays(work: Callable[[], Tensor]) -> HostGraph:
    """What recorded. Raises `Broken` where work whose steps are replayed, as on a GPU, has another
    result than when they are run."""

    def attempt(graph: HostGraph) -> Tensor:
        with recorded_by(lambda device: graph), warnings.catch_warnings():
            warnings.filterwarnings("error", ".*without a CUDA graph")
            try:
                return work()
            except UserWarning as warning:
                raise Broken(
                    f"{warning}; a step must not wait for the device: no .item(), no branch on a "
                    "tensor, no number brought to it"
                ) from warning

    often = HostGraph()
    found = [attempt(often), attempt(HostGraph(rehearsals=sys.maxsize))]
    expect(
        torch.equal(*found),
        "it ends otherwise when its steps are replayed; what a step keeps must be in tensors that "
        "it changes in place, for nothing else is done again",
    )
    return often


def frozen(plugin: Any) -> bool:
    """Whether a field of this dataclass, or another attribute, cannot be set."""
    if not is_dataclass(plugin):
        return False
    names = [field.name for field in fields(plugin)] or ["anything"]
    try:
        setattr(plugin, names[0], None)
    except FrozenInstanceError:
        return True
    return False

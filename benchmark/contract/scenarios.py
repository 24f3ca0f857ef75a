"""Small data sets, contexts and cells in which promises are tested."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from bdbench.defenses.registry import defenses
from bdbench.machine import numerics
from bdbench.machine.numerics import Setting
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
"""One epoch, and few updates: the longest stage on lent clean images makes some 40."""
CPU = torch.device("cpu")
SIDE = 16
"""Pixels of an image, for tests that work with any size."""


class Broken(Exception):
    """A broken promise. The message is a sentence about the plugin."""


class Untested(Exception):
    """A promise cannot be tested. The message says what is missing."""


class GlobalDraw(Broken):
    """A plugin drew from a global random generator."""


def expect(kept: bool, message: str) -> None:
    """Raises `Broken(message)` unless `kept`."""
    if not kept:
        raise Broken(message)


@contextmanager
def no_global_draws(subject: str, but_torch: bool = False) -> Iterator[None]:
    """Raises `GlobalDraw` if the block changes the state of a global random generator.

    subject: the code in the block, as the subject of the message
    but_torch: whether the block may draw from torch's generator
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
            raise GlobalDraw(
                f"{subject} draws from {whose} global generator; draw from the given random "
                "stream, context.rng or bdbench.models.rng.stream"
            )


SETTINGS: Mapping[str, Setting] = {
    **numerics.SETTINGS,
    "number of threads": Setting(torch.get_num_threads, torch.set_num_threads, None),
}
"""What a plugin may not leave changed, because the code after it depends on it."""


@contextmanager
def settings_kept() -> Iterator[None]:
    """Restores `SETTINGS` after the block, and raises `Broken` if one was changed and the block
    raises nothing."""
    before, values = numerics.state(SETTINGS), _values()
    try:
        yield
    finally:
        after, now = _values(), numerics.state(SETTINGS)
        for restore, setting in before.items():
            if now.get(restore) != setting:
                restore(setting)
    for which, value in values.items():
        expect(
            after[which] == value,
            f"it leaves torch's {which} changed, from {value} to {after[which]}: restore it, as "
            "`with` does",
        )


def _values() -> dict[str, Any]:
    return {which: setting.value() for which, setting in SETTINGS.items()}


def random_images(count: int, size: int, classes: int) -> ImageSet:
    """Random images with balanced classes."""
    shape = (count, 3, size, size)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=stream(0, "contract"))
    return ImageSet(pixels, torch.arange(count) % classes, classes)


def training_context(data: ImageSet, seed: int = 0) -> TrainingContext:
    """A context for a very short training on such images."""
    builder = partial(models.build("wrn16_1").build, data.num_classes, data.size[0])
    return TrainingContext(RECIPE, CPU, builder, seed)


def defense_context(data: ImageSet, clean_fraction: float, seed: int = 0) -> Context:
    """The context of a defense, with undefended networks that are not trained."""
    training = training_context(data, seed)
    return Context(
        **vars(training),
        clean=clean_budget(data, clean_fraction, seed),
        train_undefended=lambda n: replace(training, seed=seed + 100 * n).build().eval(),
    )


def same(one: ImageSet, images: Tensor, labels: Tensor) -> bool:
    return torch.equal(one.images, images) and torch.equal(one.labels, labels)


def few_images(count: int, defense: str = "none") -> str:
    """A data set of `count` training images, or as many as a defense needs if it is lent some of
    each class."""
    count = max(count, 10 * defenses.build(defense).clean_images)
    return f"toy(train_images={count}, test_images=20, image_size={SIDE})"


def run_whole_cell(
    attack: str,
    defense: str,
    dataset: str,
    roots: Sequence[Path] = (),
    cache: Cache | None = None,
) -> None:
    """Raises `Broken` if a very short cell fails.

    roots, cache: see `Harness`; by default a temporary cache
    """
    with TemporaryDirectory() as folder:
        harness = Harness(cache or Cache(Path(folder)), roots, CPU)
        record = harness.run(cell(dataset, "wrn16_1", attack, defense, RECIPE, seed=0))
    if error := record.error:
        raise Broken(f"it fails with {error.type}: {error.message}")
    decode(encode(record))


def resumes(attack: str, defense: str, curves: bool = False) -> int:
    """Interrupt a cell again and again, and return how often it resumed from a checkpoint. Raises
    `Broken` if its record differs from that of an uninterrupted cell."""
    recipe = replace(RECIPE, epochs=3)
    chosen = cell(few_images(64, defense), "wrn16_1", attack, defense, recipe, seed=0)

    def attempt(folder: str, progress: Callable[[int], None]) -> Record:
        # With negative patience, every round writes a checkpoint.
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
            # So that every attempt gets further.
            share += 2
    one, two = ({**encode(record), "measured": None} for record in (whole, again))
    expect(
        one == two,
        "an interrupted run gives another result; name everything that a step changes in the state "
        "of its loop, and wrap a `for` that contains loops in resumable",
    )
    return again.measured.resumed or 0


def replays(work: Callable[[], Tensor]) -> HostGraph:
    """Capture and replay the training steps inside `work`, as a GPU does, and return the recorder.
    Raises `Broken` if the result differs from that of eager steps."""

    def attempt(graph: HostGraph) -> Tensor:
        with recorded_by(lambda device: graph), warnings.catch_warnings():
            warnings.filterwarnings("error", ".*without a CUDA graph")
            try:
                return work()
            except UserWarning as warning:
                raise Broken(
                    f"{warning}; a step must not synchronise with the device: no .item(), no "
                    "branch on a tensor, no copy of a Python number to the device"
                ) from warning

    graph = HostGraph()
    results = [attempt(graph), attempt(HostGraph(warm_up=sys.maxsize))]
    expect(
        torch.equal(*results),
        "replayed steps give another result; a step must store its state in tensors that it "
        "updates in place, because a replay repeats nothing else",
    )
    return graph


def frozen(plugin: Any) -> bool:
    """Whether a plugin is a dataclass that refuses to set attributes."""
    if not is_dataclass(plugin):
        return False
    names = [field.name for field in fields(plugin)] or ["anything"]
    try:
        setattr(plugin, names[0], None)
    except FrozenInstanceError:
        return True
    return False

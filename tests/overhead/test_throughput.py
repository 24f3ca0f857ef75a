"""Throughput of one training, as a ratio to the bare forward, backward and update.

`make bench` prints it. All candidates take turns in one run, because machines are noisy and only a
ratio measured side by side means something.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import cross_entropy

from benchmark.devices import has_bf16
from defenses.base import Context
from defenses.cbd import CBD
from models.augment import to_float
from models.context import TrainingContext, network_builder
from models.data import ImageSet
from models.rng import stream
from models.training import Recipe, sample_losses, train

BATCH, STEPS, ROUNDS = 128, 24, 5
CPU = torch.device("cpu")
PRECISIONS = ["fp32", "bf16"] if has_bf16() else ["fp32"]


@pytest.fixture(autouse=True)
def all_threads() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    yield
    torch.set_num_threads(before)


def data() -> ImageSet:
    """Random images of the shape of CIFAR-10: what they show does not change the work."""
    count, rng = BATCH * STEPS, stream(0, "bench")
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=rng)
    return ImageSet(pixels, torch.arange(count) % 10, 10)


def training(precision: str) -> TrainingContext:
    recipe = Recipe(epochs=1, batch_size=BATCH, precision=precision)
    return TrainingContext(recipe, CPU, network_builder("wrn16_1", 10, 32), seed=0)


def bare(lent: TrainingContext, images: ImageSet) -> Callable[[], object]:
    """Steps on one fixed batch that is already a float tensor: the least a training can cost."""
    model = lent.build().train()
    optimizer = lent.recipe.sgd(model)
    batch, labels = to_float(images.images[:BATCH]), images.labels[:BATCH]

    def steps() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            cross_entropy(model(batch), labels).backward()
            optimizer.step()

    return steps


def plain(lent: TrainingContext, images: ImageSet) -> Callable[[], object]:
    """`none`: crop, flip, cutout and the loop."""
    model = lent.build()
    return lambda: train(model, images, lent.recipe, lent.rng("classifier"))


def cbd(lent: TrainingContext, images: ImageSet) -> Callable[[], object]:
    """f_C of `cbd` with re-weighting, critic and l2 term; f_B's own training is timed apart and
    taken off."""
    context = Context(**vars(lent))
    return lambda: CBD(t1=1).fit(images, context)


def f_b(lent: TrainingContext, images: ImageSet) -> Callable[[], object]:
    """The part of `cbd` before f_C: one epoch of f_B and its losses on all images."""
    return lambda: sample_losses(
        train(lent.build("f_B"), images, lent.recipe, lent.rng("f_B")), images
    )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_overhead_of_the_loop_and_of_cbd(precision: str, benchmark: object) -> None:
    images, lent = data(), training(precision)
    candidates = {make.__name__: make(lent, images) for make in (bare, plain, f_b, cbd)}
    seconds: dict[str, list[float]] = {name: [] for name in candidates}

    def one_round() -> None:
        for name, work in candidates.items():
            begun = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - begun)

    benchmark.pedantic(one_round, rounds=ROUNDS, warmup_rounds=1)  # type: ignore[attr-defined]
    best = {name: min(times[1:]) for name, times in seconds.items()}
    best["cbd"] -= best.pop("f_b")
    speed = {name: BATCH * STEPS / spent for name, spent in best.items()}
    ratios = {
        "none to bare step": speed["plain"] / speed["bare"],
        "cbd to none": speed["cbd"] / speed["plain"],
    }
    benchmark.extra_info.update(speed | ratios)  # type: ignore[attr-defined]
    print(f"\n{precision}, {torch.get_num_threads()} threads, best of {ROUNDS} rounds, images/s:")
    for name, value in speed.items():
        print(f"  {name:<18} {value:8.0f}")
    for name, value in ratios.items():
        print(f"  {name:<18} {value:8.2f}")
    assert ratios["none to bare step"] > 0.7
    assert ratios["cbd to none"] > 0.5

"""What the benches share: sizes, the bare step, and candidates that take turns.

Machines are noisy, so a number is the ratio of two speeds, in items per second, that were measured
one right after the other, and there is one for each round: more is better. `BENCH_TINY=1` makes
everything tiny, which shows in a minute whether the benches run and nothing else.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from statistics import mean, median
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from bdbench.machine.clock import synchronise
from bdbench.models.data import ImageSet
from bdbench.models.registry import models
from bdbench.models.rng import stream
from bdbench.models.training.augment import to_float
from bdbench.models.training.context import TrainingContext
from bdbench.models.training.recipe import Recipe

TINY = bool(os.environ.get("BENCH_TINY"))
ROUNDS = 1 if TINY else 5
BATCH = 16 if TINY else 128
BARE_STEPS = 4
TURN = 0.0 if TINY else 1.0
"""Seconds, at least, that a candidate runs in a round."""
CPU = torch.device("cpu")

Work = Callable[[], object]


def pictures(count: int) -> ImageSet:
    """Random images of the shape of CIFAR-10: what they show does not change the work."""
    pixels = torch.randint(
        0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=stream(0, "bench")
    )
    return ImageSet(pixels, torch.arange(count) % 10, 10)


def lend(precision: str = "fp32", batch_size: int = BATCH) -> TrainingContext:
    """A training of one epoch of WRN-16-1 on the processor."""
    recipe = Recipe(epochs=1, batch_size=batch_size, precision=precision)
    return TrainingContext(recipe, CPU, partial(models.build("wrn16_1").build, 10, 32), seed=0)


def bare() -> Work:
    """Steps on one batch that is a float tensor already: the least that training can cost."""
    lent, images = lend(), pictures(BATCH)
    model = lent.build().train()
    optimizer = lent.recipe.sgd(model)
    batch = to_float(images.images)

    def steps() -> None:
        for _ in range(BARE_STEPS):
            optimizer.zero_grad()
            cross_entropy(model(batch), images.labels).backward()
            optimizer.step()

    return steps


def seconds_of(work: Work, device: torch.device = CPU) -> float:
    synchronise(device)
    begun = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - begun


def turn(work: Work) -> float:
    """Mean seconds of as many runs as fill a turn."""
    times: list[float] = []
    while sum(times) < TURN or not times:
        times.append(seconds_of(work))
    return mean(times)


def take_turns(benchmark: Any, candidates: dict[str, Work], rounds: int) -> dict[str, list[float]]:
    """Seconds of each in every round, after a round that does not count. The last is the one that
    `benchmark` shows."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    *others, shown = candidates

    def before() -> None:
        for name in others:
            seconds[name].append(turn(candidates[name]))

    def last() -> None:
        seconds[shown].append(turn(candidates[shown]))

    benchmark.pedantic(last, setup=before, rounds=rounds, warmup_rounds=1)
    return {name: times[1:] for name, times in seconds.items()}


def times_as_fast(work: list[float], reference: list[float], share: float = 1.0) -> list[float]:
    """The speed of `work` over that of `reference`, which does `share` as much, in every round."""
    return [other / own / share for own, other in zip(work, reference, strict=True)]


def beside_bare(benchmark: Any, name: str, work: Work, count: int, unit: str = "images") -> None:
    """Times `work`, which handles so many, in turn with the bare step, and keeps the ratios."""
    seconds = take_turns(benchmark, {"bare": bare(), "work": work}, ROUNDS)
    print(f"\n{name}: {count / median(seconds['work']):,.0f} {unit}/s")
    ratios = times_as_fast(seconds["work"], seconds["bare"], BARE_STEPS * BATCH / count)
    keep(benchmark, {f"{name} / bare step": ratios}, **{unit: count})


def keep(benchmark: Any, ratios: dict[str, list[float]], **sizes: int) -> None:
    """For the results: the ratios of every round, by name, and what they were measured with."""
    benchmark.extra_info.update(ratios=ratios, sizes=sizes)

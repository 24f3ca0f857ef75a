"""A training beside other work: how much of its speed is left, and what the remedy costs a training
that is alone.

The other work is a training of one thread in a session of its own, as another user's job is:
schedulers share out cores by session. A cell has as many threads as there are cores.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import pytest
from tabulate import tabulate
from turns import ROUNDS, TINY, keep

from bdbench.machine.threads import short_spin

SECONDS = 1.0 if TINY else 10.0
TRAIN = """
import sys, time, torch
from bdbench.cells.cell import cell
from bdbench.models.training.recipe import Recipe
from bdbench.trial.warm_up import steps
threads, seconds = int(sys.argv[1]), float(sys.argv[2])
torch.set_num_threads(threads)
chosen, batch = cell("cifar10", "wrn16_1", "none", "none", Recipe(), 0), 64
steps(chosen, torch.device("cpu"), 3, batch)
print("warm", flush=True)
begun = time.perf_counter()
taken = []
while time.perf_counter() < begun + seconds:
    taken += steps(chosen, torch.device("cpu"), 5, batch)
print(len(taken) * batch / sum(taken), flush=True)
"""


def training(threads: int, seconds: float, spin: dict[str, str]) -> subprocess.Popen[str]:
    chosen = {name: text for name, text in os.environ.items() if name not in short_spin({})}
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(threads), str(seconds)],
        env={**chosen, **spin},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def speed(spin: dict[str, str]) -> float:
    """Images per second of a training with a thread for each core."""
    with training(len(os.sched_getaffinity(0)), SECONDS, spin) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "warm\n"
        return float(run.stdout.readline())


@contextmanager
def neighbour() -> Iterator[None]:
    with training(1, 3600.0, {}) as run:
        assert run.stdout is not None
        run.stdout.readline()
        try:
            yield
        finally:
            run.kill()


@pytest.mark.timeout(3600)
def test_a_training_beside_other_work(benchmark: object) -> None:
    ways = {"short spin": short_spin({}), "spin as it is": {}}
    assert ways["short spin"]
    quiet: dict[str, list[float]] = {name: [] for name in ways}
    busy: dict[str, list[float]] = {name: [] for name in ways}

    def turn() -> None:
        for name, spin in ways.items():
            quiet[name].append(speed(spin))
        with neighbour():
            for name, spin in ways.items():
                busy[name].append(speed(spin))

    benchmark.pedantic(turn, rounds=ROUNDS, iterations=1)  # type: ignore[attr-defined]
    left = {name: [b / q for b, q in zip(busy[name], quiet[name], strict=True)] for name in ways}
    cost = [a / b for a, b in zip(quiet["short spin"], quiet["spin as it is"], strict=True)]
    keep(
        benchmark,
        {
            "beside a neighbour / alone": left["short spin"],
            "alone, short spin / spin as it is": cost,
        },
    )
    rows = [(name, median(quiet[name]), median(busy[name]), median(left[name])) for name in ways]
    print("\n\nimages/s, medians of the rounds")
    print(tabulate(rows, ["", "alone", "beside", "left"], floatfmt=("", ".0f", ".0f", ".2f")))
    if not TINY:
        assert median(left["short spin"]) >= 0.3
        assert median(cost) >= 0.97

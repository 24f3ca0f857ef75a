"""Parallel tasks: the same numbers as alone, counts, checkpoints, and a common stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from bdbench.defenses.base import Context
from bdbench.defenses.cbd import CBD
from bdbench.machine.clock import Stopwatch
from bdbench.models import observer
from bdbench.models.data import ImageSet
from bdbench.models.registry import models
from bdbench.models.scope import num_threads
from bdbench.models.training.loop import train
from bdbench.models.training.parallel import Stopped, run_parallel
from bdbench.models.training.recipe import Recipe
from bdbench.models.training.resume import checkpointed_in, resumable
from bdbench.storage.checkpoints import Checkpoints
from bdbench.trial.monitor import TrainingMonitor

CPU = torch.device("cpu")
RECIPE = Recipe(epochs=2, batch_size=16, learning_rate=0.02, padding=1, cutout=0)


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    with num_threads(3):
        yield


@pytest.fixture
def context() -> Context:
    return Context(RECIPE, CPU, lambda: models.build("wrn16_1").build(10, 16), seed=0)


def monitor() -> TrainingMonitor:
    return TrainingMonitor(lambda work: None, Stopwatch(CPU))


def trained(context: Context, data: ImageSet, seed: int) -> dict[str, torch.Tensor]:
    own = replace(context, seed=seed)
    network = own.build()
    train(network, data, RECIPE, own.rng("classifier"))
    return network.state_dict()


@pytest.mark.parametrize("together", [True, False])
def test_each_task_has_the_numbers_that_it_has_alone(
    context: Context, images: ImageSet, together: bool
) -> None:
    tasks = [partial(trained, context, images, seed) for seed in range(5)]
    sees = monitor()
    torch.set_num_threads(1)
    with observer.observed_by(sees):
        alone = [work() for work in tasks]
    torch.set_num_threads(3 if together else 1)
    counts = monitor()
    with observer.observed_by(counts):
        found = run_parallel(tasks, together)
    for one, other in zip(alone, found, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert counts.counts() == sees.counts()


def test_a_branch_has_one_thread_and_restores_ours() -> None:
    meet = threading.Barrier(3, timeout=30)

    def work() -> tuple[int, int]:
        meet.wait()
        return torch.get_num_threads(), threading.get_ident()

    found = run_parallel([work] * 6)
    assert {threads for threads, _ in found} == {1}
    assert len({thread for _, thread in found}) == 3, "as many at once as we have threads"
    assert torch.get_num_threads() == 3
    with pytest.raises(threading.BrokenBarrierError):
        run_parallel([partial(meet.wait, 0.01)] * 2)
    assert torch.get_num_threads() == 3


def test_serial_tasks_run_in_our_thread_with_all_compute_threads() -> None:
    def work() -> tuple[int, int]:
        return torch.get_num_threads(), threading.get_ident()

    assert run_parallel([work] * 2, together=False) == [(3, threading.get_ident())] * 2


def endless(started: threading.Event) -> None:
    while True:
        started.set()
        time.sleep(0.001)
        observer.current().trained(1)


def test_when_one_fails_the_others_stop_and_the_rest_do_not_start() -> None:
    started, begun = threading.Event(), []

    def fails() -> None:
        started.wait(30)
        raise ZeroDivisionError("the first")

    tasks: list[Callable[[], None]] = [partial(endless, started), fails, partial(endless, started)]
    with pytest.raises(ZeroDivisionError, match="the first"):
        run_parallel([*tasks, *[partial(begun.append, n) for n in range(50)]])
    # The thread of the failed task may have started another one before the stop.
    assert len(begun) < 50
    assert threading.active_count() == 1 or all(t.daemon for t in threading.enumerate()[1:])


def test_an_interrupt_of_the_caller_stops_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a signal does, which Python handles in the main thread."""
    started = threading.Event()

    def interrupted(*_: object, **__: object) -> None:
        started.wait(30)
        raise KeyboardInterrupt

    monkeypatch.setattr("bdbench.models.training.parallel.wait", interrupted)
    ends: list[type[BaseException]] = []

    def work() -> None:
        try:
            endless(started)
        except BaseException as error:
            ends.append(type(error))
            raise

    with pytest.raises(KeyboardInterrupt):
        run_parallel([work] * 3)
    assert ends == [Stopped] * 3


def counted(number: int, met: list[int] | None = None, limit: int = 0) -> float:
    total = torch.zeros(1)
    for _ in range(2):
        for _ in resumable(4, {"total": total}):
            observer.current().forward(1)
            total += 10**number
            observer.current().trained(1)
            if met is not None:
                met.append(number)
                if limit and len(met) >= limit:
                    raise KeyboardInterrupt
    return float(total)


def store(folder: Path) -> Checkpoints:
    """Stores every round, with the counts of the current observer."""
    note = lambda: observer.current().counts()  # noqa: E731
    return Checkpoints(folder, note, lambda noted: observer.current().resume_from(noted), -1)


@pytest.mark.parametrize("together", [True, False])
def test_interrupted_branches_resume(tmp_path: Path, together: bool) -> None:
    def attempt(limit: int) -> tuple[list[float], int, int]:
        met: list[int] = []
        sees = monitor()
        tasks = [partial(counted, n, met, limit) for n in range(4)]
        with observer.observed_by(sees), checkpointed_in(store(tmp_path)):
            before = counted(4)
            found = run_parallel(tasks, together)
            found += run_parallel(tasks[:1], together)
            after = counted(5)
        return [before, *found, after], sees.forwards, len(met)

    with pytest.raises(KeyboardInterrupt):
        attempt(6)
    names = {path.name.partition("-")[0] for path in tmp_path.iterdir()}
    assert {"0", "1"} < names, "of the loops before the split"
    assert {name.partition(".")[0] for name in names} == {"0", "1", "2"}
    with pytest.raises(KeyboardInterrupt):
        attempt(9)
    found, forwards, met = attempt(0)
    assert found == [8e4, 8.0, 80.0, 800.0, 8000.0, 8.0, 8e5]
    assert forwards == 8 * 7
    assert met < 8 * 5, "some rounds were restored"


def test_branches_inside_a_loop_are_stored_with_it(tmp_path: Path) -> None:
    done = torch.zeros(1)
    with observer.observed_by(monitor()), checkpointed_in(store(tmp_path)):
        for _ in resumable(2, {"done": done}):
            assert run_parallel([partial(counted, 0)] * 2) == [8.0, 8.0]
    assert [path.name.partition("-")[0] for path in tmp_path.iterdir()] == ["0"]


def test_branches_may_split_again() -> None:
    counts = monitor()
    inner = partial(run_parallel, [partial(counted, 0)] * 2)
    with observer.observed_by(counts), nullcontext():
        assert run_parallel([inner, inner]) == [[8.0, 8.0], [8.0, 8.0]]
    assert counts.forwards == 32


def test_the_search_of_cbd_is_the_same_on_any_number_of_threads(
    context: Context, images: ImageSet
) -> None:
    def search(threads: int) -> dict[str, float]:
        torch.set_num_threads(threads)
        own = replace(context, journal=replace(context.journal, scalars={}))
        CBD(select="cv", folds=2).search(images, own)
        return own.journal.scalars

    assert search(1) == search(3)

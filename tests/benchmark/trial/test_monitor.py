"""Curves: when they are drawn, on how many images, and what that costs, in passes."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from bdbench.cells.cell import Cell, cell
from bdbench.cells.cost import LENT, POINTS, SHARE, Sample, curve_work, drawn, sample
from bdbench.machine.clock import Stopwatch
from bdbench.models.networks.classifier import Classifier
from bdbench.models.registry import models
from bdbench.models.rng import stream
from bdbench.models.training.recipe import Recipe
from bdbench.records.record import Record
from bdbench.storage.cache import Cache
from bdbench.trial import harness
from bdbench.trial.evaluation import of_both, some
from bdbench.trial.harness import Harness
from bdbench.trial.monitor import Point, TrainingMonitor

CPU = torch.device("cpu")
TRAINING, TEST = 60, 40


def tiny(defense: str, **fields: int) -> Cell:
    source = f"toy(train_images={TRAINING}, test_images={TEST}, image_size=16)"
    recipe = Recipe(**{"epochs": 3, "batch_size": 20, "learning_rate": 0.02, **fields})  # type: ignore[arg-type]
    return cell(source, "wrn16_1", "badnets", defense, recipe, seed=0)


@pytest.mark.parametrize("rounds", [1, 2, 19, 20, 21, 50, 100, 1000])
def test_at_most_twenty_points_are_evenly_spread(rounds: int) -> None:
    found = drawn(rounds)
    assert len(found) == min(POINTS, rounds)
    assert found[-1] == rounds
    gaps = [after - before for before, after in pairwise([0, *found])]
    assert max(gaps) - min(gaps) <= 1
    assert min(gaps) >= 1


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (0.0, Sample(1, 1)),
        (30.9, Sample(10, 10)),
        (150.0, Sample(50, 50)),
        (220.0, Sample(120, 50)),
        (1e9, Sample(1000, 50)),
    ],
)
def test_a_budget_is_shared_out(budget: float, expected: Sample) -> None:
    found = sample(budget, training=1000, test=50)
    assert found == expected
    assert found.work <= max(budget, 3)


def test_rows_have_a_victim_and_both_kinds_of_images() -> None:
    victims = torch.arange(50) == 37
    for count in (1, 2, 50):
        rows = some(victims, count, stream(0, "x"))
        assert len(set(rows.tolist())) == count
        assert victims[rows].any()
        assert rows.tolist() == sorted(rows.tolist())
    mask = torch.arange(50) < 5
    for count, poisoned in ((1, 0), (4, 2), (12, 5), (49, 5), (50, 5)):
        rows = of_both(mask, count, stream(0, "x"))
        assert (len(rows), int(mask[rows].sum())) == (count, poisoned)
    assert len(of_both(~mask, 40, stream(0, "x"))) == 40
    few, more = (set(of_both(mask, n, stream(0, "x")).tolist()) for n in (10, 30))
    assert few < more


def network() -> Classifier:
    return models.build("wrn16_1").build(10, 16)


def monitor() -> TrainingMonitor:
    made = TrainingMonitor(lambda work: None, Stopwatch(CPU))
    made.judge = lambda classifier, few: {"clean_accuracy": float(few.work)}
    made.images = (1000, 500)
    return made


def epoch(monitor: TrainingMonitor, number: int, images: int = 100) -> None:
    monitor.forward(images)
    monitor.backward(images)
    monitor.round_ended(number)


def epochs_of(curve: list[Point]) -> list[float | None]:
    return [point["epoch"] for point in curve]


def test_a_training_made_of_many_loops_is_one() -> None:
    made = monitor()
    made.watch(network())
    for part in range(50):
        made.loop_started(1, 100, (part, 50))
        epoch(made, 1)
    assert epochs_of(made.curve) == drawn(50)
    assert 0.9 * SHARE * made.work < made.spent <= SHARE * made.work


def test_a_training_that_ends_early_has_its_last_round() -> None:
    made, watched = monitor(), network()
    made.watch(watched)
    made.loop_started(30, 3000, (0, 1))
    for number in range(1, 17):
        epoch(made, number)
    assert 16 not in drawn(30)
    made.close(watched)
    assert epochs_of(made.curve) == [n for n in drawn(30) if n < 16] + [16]
    assert made.spent <= SHARE * made.work


def test_what_nobody_trained_has_one_point() -> None:
    made = monitor()
    made.close(network())
    assert epochs_of(made.curve) == [1]


def test_points_go_on_from_a_checkpoint() -> None:
    whole, first, again = monitor(), monitor(), monitor()
    for made, rounds in ((whole, 50), (first, 30)):
        made.watch(network())
        made.loop_started(2, 500, (0, 1))
        for number in (1, 2):
            epoch(made, number, 250)
        # Another, which goes on from here.
        kept = json.loads(json.dumps(made.counts()))
        made.loop_started(50, 5000, (0, 1))
        for number in range(1, rounds + 1):
            epoch(made, number)
    again.watch(network())
    again.loop_started(2, 500, (0, 1))
    again.go_on(kept)
    again.loop_started(50, 5000, (0, 1))
    again.go_on(json.loads(json.dumps(first.counts())))
    for number in range(31, 51):
        epoch(again, number)
    assert again.counts() == whole.counts()


def run(made: Cell, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Record, list[Sample]]:
    """The record with curves, and the images of each point that was evaluated."""
    found: list[Sample] = []
    point = harness._Trial.point

    def counted(trial: harness._Trial, classifier: Classifier, data: object, few: Sample) -> Point:
        found.append(few)
        return point(trial, classifier, data, few)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(harness._Trial, "point", counted)
        return Harness(Cache(folder), [], CPU, curves=True).run(made), found


@pytest.mark.parametrize(
    ("defense", "estimated"),
    [
        ("none", 1.0),
        ("clp", 1.0),
        ("cbd(t1=1)", 0.8),
        # On so few images, it is lent more than the share that it is expected to be.
        ("ft(updates=100)", None),
        ("abl(isolation_rate=0.1, joint_updates=20)", None),
        ("dbd(ssl_epochs=34)", None),
    ],
)
def test_curves_cost_what_was_estimated_and_no_more_than_their_share(
    defense: str, estimated: float | None, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """estimated: the least share of the estimate that is spent, which is never more"""
    made = tiny(defense)
    record, points = run(made, cache_folder, monkeypatch)
    assert record.status == "ok", record.error
    passes = record.passes["forward"] + 2 * record.passes["backward"]
    spent = sum(few.work for few in points)
    assert 0 < spent <= SHARE * passes * TRAINING
    if estimated is not None:
        assert estimated * curve_work(made) <= spent <= curve_work(made)


def test_the_last_point_is_the_outcome_and_the_others_say_what_they_stand_on(
    cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, points = run(tiny("none", epochs=24), cache_folder, monkeypatch)
    assert epochs_of(record.curves) == drawn(24)
    assert len(points) == POINTS
    assert record.metrics is not None
    for name, count in record.metrics.items():
        assert count is not None
        assert record.curves[-1][name] == round(count.rate, 6)
    few = sample(LENT * 24 * 3 * TRAINING / POINTS, TRAINING, TEST)
    assert {point["training_images"] for point in record.curves} == {few.training}
    assert [point["test_images"] for point in record.curves] == [few.test] * 19 + [TEST]


def test_a_curve_is_the_same_whatever_lies_in_the_cache(tmp_path: Path) -> None:
    """Of a defense that tunes an undefended network, which another cell made without curves."""
    made = tiny("ft(updates=40)")
    alone = Harness(Cache(tmp_path / "alone"), [], CPU, curves=True).run(made)
    Harness(Cache(tmp_path / "shared"), [], CPU).run(tiny("none"))
    after = Harness(Cache(tmp_path / "shared"), [], CPU, curves=True).run(made)
    assert alone.curves == after.curves

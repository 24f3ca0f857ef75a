"""Curves: which rounds have a point, on how many images, and at what cost in passes."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from bdbench.cells.cell import Cell, cell
from bdbench.cells.cost import (
    POINTS,
    SHARE,
    UNDEFENDED_SHARE,
    Sample,
    curve_work,
    point_rounds,
    sample,
)
from bdbench.machine.clock import Stopwatch
from bdbench.models.networks.classifier import Classifier
from bdbench.models.registry import models
from bdbench.models.rng import stream
from bdbench.models.training.recipe import Recipe
from bdbench.records.record import Record
from bdbench.storage.cache import Cache
from bdbench.trial import curves
from bdbench.trial.evaluation import sample_of_both, sample_with_victim
from bdbench.trial.harness import Harness
from bdbench.trial.monitor import Point, TrainingMonitor
from bdbench.trial.poisoned import PoisonedData
from bdbench.trial.workspace import Workspace

CPU = torch.device("cpu")
TRAINING, TEST = 60, 40


def tiny(defense: str, attack: str = "badnets", **fields: int) -> Cell:
    source = f"toy(train_images={TRAINING}, test_images={TEST}, image_size=16)"
    recipe = Recipe(**{"epochs": 3, "batch_size": 20, "learning_rate": 0.02, **fields})  # type: ignore[arg-type]
    return cell(source, "wrn16_1", attack, defense, recipe, seed=0)


@pytest.mark.parametrize("rounds", [1, 2, 19, 20, 21, 50, 100, 1000])
def test_at_most_twenty_points_are_evenly_spread(rounds: int) -> None:
    found = point_rounds(rounds)
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
        rows = sample_with_victim(victims, count, stream(0, "x"))
        assert len(set(rows.tolist())) == count
        assert victims[rows].any()
        assert rows.tolist() == sorted(rows.tolist())
    mask = torch.arange(50) < 5
    for count, poisoned in ((1, 0), (4, 2), (12, 5), (49, 5), (50, 5)):
        rows = sample_of_both(mask, count, stream(0, "x"))
        assert (len(rows), int(mask[rows].sum())) == (count, poisoned)
    assert len(sample_of_both(~mask, 40, stream(0, "x"))) == 40
    few, more = (set(sample_of_both(mask, n, stream(0, "x")).tolist()) for n in (10, 30))
    assert few < more


def network() -> Classifier:
    return models.build("wrn16_1").build(10, 16)


def monitor() -> TrainingMonitor:
    made = TrainingMonitor(lambda work: None, Stopwatch(CPU))
    made.judge = lambda classifier, few: {"clean_accuracy": float(few.work)}
    made.sizes = (1000, 500, 1)
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
    assert epochs_of(made.curve) == point_rounds(50)
    assert 0.9 * SHARE * made.work < made.spent <= SHARE * made.work


def test_a_training_that_ends_early_has_its_last_round() -> None:
    made, watched = monitor(), network()
    made.watch(watched)
    made.loop_started(30, 3000, (0, 1))
    for number in range(1, 17):
        epoch(made, number)
    assert 16 not in point_rounds(30)
    made.close(watched)
    assert epochs_of(made.curve) == [n for n in point_rounds(30) if n < 16] + [16]
    assert made.spent <= SHARE * made.work


def test_a_network_that_was_not_trained_has_one_point() -> None:
    made = monitor()
    made.close(network())
    assert epochs_of(made.curve) == [1]


def test_a_curve_resumes_from_a_checkpoint() -> None:
    whole, first, again = monitor(), monitor(), monitor()
    for made, rounds in ((whole, 50), (first, 30)):
        made.watch(network())
        made.loop_started(2, 500, (0, 1))
        for number in (1, 2):
            epoch(made, number, 250)
        # A second monitor resumes from here.
        kept = json.loads(json.dumps(made.counts()))
        made.loop_started(50, 5000, (0, 1))
        for number in range(1, rounds + 1):
            epoch(made, number)
    again.watch(network())
    again.loop_started(2, 500, (0, 1))
    again.resume_from(kept)
    again.loop_started(50, 5000, (0, 1))
    again.resume_from(json.loads(json.dumps(first.counts())))
    for number in range(31, 51):
        epoch(again, number)
    assert again.counts() == whole.counts()


def run(made: Cell, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Record, list[Sample]]:
    """The record with curves, and the sample of each point."""
    found: list[Sample] = []
    point = curves.point

    def counted(ws: Workspace, classifier: Classifier, data: PoisonedData, few: Sample) -> Point:
        found.append(few)
        return point(ws, classifier, data, few)

    with monkeypatch.context() as patch:
        patch.setattr(curves, "point", counted)
        return Harness(Cache(folder), [], CPU, curves=True).run(made), found


@pytest.mark.parametrize(
    ("defense", "estimated"),
    [
        ("none", 1.0),
        ("clp", 1.0),
        ("cbd(t1=1)", 0.8),
        # With so few images, the clean budget is larger than the share that is estimated.
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
    passes = record.passes.forward + 2 * record.passes.backward
    spent = sum(few.work for few in points)
    assert 0 < spent <= SHARE * passes * TRAINING
    if estimated is not None:
        assert estimated * curve_work(made) <= spent <= curve_work(made)


@pytest.mark.parametrize(
    ("attack", "triggers"), [("badnets", 1), ("mixed(attacks=['badnets', 'blend', 'bpp'])", 3)]
)
def test_a_point_sees_as_many_images_as_its_sample_says(
    attack: str, triggers: int, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    point = curves.point

    def hooked(ws: Workspace, classifier: Classifier, data: PoisonedData, few: Sample) -> Point:
        count = classifier.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
        with count:
            return point(ws, classifier, data, few)

    monkeypatch.setattr(curves, "point", hooked)
    made = tiny("none", attack)
    record, points = run(made, cache_folder, monkeypatch)
    assert record.status == "ok", record.error
    assert {few.triggers for few in points} == {triggers}
    assert sum(seen) == sum(few.work for few in points)
    assert 0.8 * curve_work(made) <= sum(seen) <= curve_work(made)


def test_the_last_point_has_the_metrics_and_all_points_have_their_sample_size(
    cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, points = run(tiny("none", epochs=24), cache_folder, monkeypatch)
    assert epochs_of(record.curves) == point_rounds(24)
    assert len(points) == POINTS
    assert len(record.counts) == 4
    for name, count in record.counts.items():
        assert record.curves[-1][name] == round(count.rate, 6)
    few = sample(UNDEFENDED_SHARE * 24 * 3 * TRAINING / POINTS, TRAINING, TEST)
    assert {point["training_images"] for point in record.curves} == {few.training}
    assert [point["test_images"] for point in record.curves] == [few.test] * 19 + [TEST]


def test_a_curve_does_not_depend_on_the_cache(tmp_path: Path) -> None:
    """A defense tunes an undefended network that another cell trained without a curve."""
    made = tiny("ft(updates=40)")
    alone = Harness(Cache(tmp_path / "alone"), [], CPU, curves=True).run(made)
    Harness(Cache(tmp_path / "shared"), [], CPU).run(tiny("none"))
    after = Harness(Cache(tmp_path / "shared"), [], CPU, curves=True).run(made)
    assert alone.curves == after.curves

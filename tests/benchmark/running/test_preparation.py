"""Which plugins are imported where what cells share is made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import builders
import pytest

from bdbench.cells.cell import cell
from bdbench.models.plugins.files import load_file
from bdbench.models.training.recipe import Recipe
from bdbench.records.count import Count
from bdbench.records.files import write
from bdbench.records.record import REACTIVATED, Record
from bdbench.running.preparation import preparations
from bdbench.running.preparation import steps as all_steps
from bdbench.running.worker import Job

ATTACK = """
from dataclasses import dataclass
from bdbench.attacks import Attack, dirty_label, register

@register("mine")
@dataclass(frozen=True)
class Mine(Attack):
    training: bool = False

    @property
    def trains(self):
        return self.training

    def trigger(self, images):
        return 255 - images

    def poison(self, clean, rng):
        return dirty_label(self, clean, rng)
"""
DEFENSE = """
from dataclasses import dataclass
from bdbench.defenses import Defense, register

@register("mine")
@dataclass(frozen=True)
class Mine(Defense):
    undefended = 2

    def fit(self, data, context):
        return context.undefended(1)
"""
MODEL = """
from bdbench.models import models, register

@register("mine")
def mine(num_classes: int, image_size: int):
    return models.build("wrn16_1").build(num_classes, image_size)
"""


@pytest.fixture
def job(tmp_path: Path, unregistered: None) -> Job:
    """With an attack, a defense and a model, each in a file of its name."""
    files = {"attack": ATTACK, "defense": DEFENSE, "model": MODEL}
    paths = [tmp_path / f"{name}.py" for name in files]
    for path, text in zip(paths, files.values(), strict=True):
        path.write_text(text)
        load_file(path)
    return Job(tmp_path, tmp_path, (), "cpu", plugins=tuple(paths))


def steps(job: Job, model: str, attack: str, defense: str) -> list[tuple[set[str], int]]:
    """The files that each process imports, and the number of networks that it makes."""
    made = cell("toy", model, attack, defense, Recipe(), 0)
    return [
        ({path.stem for path in each.plugins}, call.keywords["networks"])  # type: ignore[attr-defined]
        for each, call in preparations(job, made)
    ]


def test_only_files_that_a_key_names_are_imported_where_its_work_is_made(job: Job) -> None:
    both = {"attack", "model"}
    assert steps(job, "mine", "mine", "mine") == [({"attack"}, 0), (both, 2)]
    assert steps(job, "mine", "mine(training=True)", "mine") == [(both, 0), (both, 2)]
    assert steps(job, "wrn16_1", "badnets", "mine") == [(set(), 0), (set(), 2)]
    assert steps(job, "mine", "dynamic", "cbd") == [({"model"}, 0)]
    assert steps(job, "wrn16_1", "adaptive(attack='mine')", "ft") == [
        ({"attack"}, 0),
        ({"attack"}, 1),
    ]


def test_the_control_of_a_reactivation_is_shared_too(job: Job) -> None:
    asked = replace(job, reactivate=True)
    model = {"model"}
    assert steps(asked, "mine", "badnets", "none") == [
        (set(), 0),
        (model, 1),
        (set(), 0),
        (model, 1),
    ]


def test_what_the_record_of_a_cell_holds_is_prepared_too(job: Job) -> None:
    """It is asked for where the record is, as the nodes of a cluster need not share its folder."""
    made = cell("toy", "mine", "badnets", "none", Recipe(), 0)
    found = vars(builders.make_record("none", "badnets", 900, 900))
    point = {"epoch": 1, "clean_accuracy": 0.9, "attack_success_rate": 0.9}
    known = {**found, "key": made.key, "cell": made.identity}
    for curves, counts in (([], {}), ([point], {REACTIVATED: Count(1, 2)})):
        metrics = {**found["metrics"].counts(), **counts}
        write(job.results, Record(**{**known, "curves": curves, "metrics": metrics}))
        (own, _), *before = reversed(all_steps(job, made, print))
        assert (own.curves, own.reactivate) == (bool(curves), bool(counts))
        assert len(before) == (4 if counts else 2)
        assert {each.curves for each, _ in before} == {bool(curves)}


def test_built_in_plugins_need_no_process_of_their_own(job: Job) -> None:
    assert steps(job, "wrn16_1", "badnets", "ft") == []

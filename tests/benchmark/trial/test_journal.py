"""What an attack or a defense says of itself never costs the cell its result."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from bdbench.attacks.badnets import BadNets
from bdbench.attacks.base import Poisoned
from bdbench.attacks.registry import attacks
from bdbench.cells.cell import cell
from bdbench.defenses.base import Context, Defense, Journal
from bdbench.defenses.registry import defenses
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier
from bdbench.models.training.recipe import Recipe
from bdbench.records.record import encode
from bdbench.storage.cache import Cache
from bdbench.trial.harness import Harness
from bdbench.trial.journal import published

CPU = torch.device("cpu")
VALUES = [0.25, 0.5, 1.0]
NUMBERS: list[Any] = [3, 3.0, True, torch.tensor(3.0), torch.tensor([3]), numpy.float64(3)]
NO_NUMBERS: list[Any] = ["good", None, torch.zeros(3), [3], 1j, 10**400, object()]
SAMPLES: list[Any] = [
    VALUES,
    tuple(VALUES),
    numpy.array(VALUES),
    torch.tensor(VALUES),
    torch.tensor(VALUES, dtype=torch.bfloat16),
    torch.tensor(VALUES, dtype=torch.float16),
    torch.tensor(VALUES, dtype=torch.float64),
    torch.tensor(VALUES, requires_grad=True),
]
NO_SAMPLES: list[Any] = [
    torch.zeros(2),
    torch.zeros(3, 1),
    torch.zeros(3, dtype=torch.complex64),
    torch.tensor(0.5),
    ["a", "b", "c"],
    [[1, 2], [3], []],
    None,
    object(),
]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_scalar_is_a_float(number: Any) -> None:
    found = published(Journal(scalars={"x": number}), 3, CPU).scalars["x"]
    assert type(found) is float
    assert found == float(number)


@pytest.mark.parametrize("values", SAMPLES)
def test_values_for_each_image_are_a_tensor(values: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = published(Journal(samples={"x": values}), 3, CPU)
    assert found.warnings == []
    assert found.samples["x"].tolist() == VALUES
    assert found.samples["x"].dtype in (torch.float32, torch.float64)
    assert not found.samples["x"].requires_grad


def test_counts_keep_every_digit() -> None:
    counts = torch.tensor([2**24, 2**24 + 1])
    assert (
        published(Journal(samples={"x": counts}), 2, CPU).samples["x"].tolist() == counts.tolist()
    )


def test_what_is_no_number_is_left_out_and_named() -> None:
    scalars = {f"s{n}": value for n, value in enumerate(NO_NUMBERS)}
    samples = {f"v{n}": value for n, value in enumerate(NO_SAMPLES)}
    journal = Journal({"good": 1.0, **scalars}, {"well": torch.zeros(3), **samples}, ["a", 3])  # type: ignore[list-item]
    found = published(journal, 3, CPU)
    assert (list(found.scalars), list(found.samples)) == (["good"], ["well"])
    assert found.warnings[:2] == ["a", "3"]
    for name, line in zip([*scalars, *samples], found.warnings[2:], strict=True):
        assert line.startswith(f"{name!r} in the journal is left out: it is not a number")
    assert found.warnings[-1].endswith("for each of the 3 training images")


def test_a_warning_in_each_step_leaves_a_record_that_can_be_read() -> None:
    lines = [f"step {n}: {'x' * 400}" for n in range(40_000) for _ in range(2)]
    found = published(Journal({}, {}, lines), 3, CPU).warnings
    assert found[:2] == lines[:4:2]
    assert len(found) == 101
    assert found[-1] == "39,900 more warnings are left out"


@dataclass(frozen=True)
class Boastful(BadNets):
    """States facts that are no numbers beside one that is."""

    def poison(self, clean: ImageSet, rng: torch.Generator) -> Poisoned:
        facts: dict[Any, Any] = dict(enumerate(NO_NUMBERS))
        return replace(super().poison(clean, rng), facts={**facts, "good": torch.tensor(1.0)})


@dataclass(frozen=True)
class Talkative(Defense):
    """Publishes things that are no numbers beside those that are."""

    def fit(self, data: ImageSet, context: Context) -> Classifier:
        journal, n = context.journal, len(data)
        scalars: dict[Any, Any] = dict(enumerate(NO_NUMBERS))
        samples: dict[Any, Any] = {"half": torch.ones(n, dtype=torch.bfloat16), "short": [1.0]}
        journal.scalars |= {**scalars, "good": 1.0}
        journal.samples |= samples
        return context.build()


@pytest.fixture
def talkative() -> Iterator[None]:
    defenses.names()
    defenses.register("talkative")(Talkative)
    attacks.names()
    attacks.register("boastful")(Boastful)
    yield
    del defenses._factories["talkative"], attacks._factories["boastful"]


@pytest.mark.usefixtures("talkative")
def test_a_cell_outlives_its_journal(cache_folder: Path) -> None:
    data = "toy(train_images=60, test_images=40, image_size=16)"
    work = cell(data, "wrn16_1", "boastful", "talkative", Recipe(epochs=1), 0)
    harness = replace(Harness(Cache(cache_folder), [], CPU), curves=True)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        record = harness.run(work)
    encode(record)
    assert record.status == "ok", record.error
    left_out = "among the facts of attack boastful is left out: it is not a number"
    assert sum(left_out in str(each.message) for each in warned) == len(NO_NUMBERS)
    assert record.diagnostics["attack"] == {"good": 1.0}
    assert record.diagnostics["scalars"] == {"good": 1.0}
    assert record.diagnostics["samples"].keys() == {"half"}
    assert len(record.diagnostics["warnings"]) == len(NO_NUMBERS) + 1
    kept = Cache(cache_folder).get("embeddings", {"cell": work.key})
    assert kept is not None
    assert kept["samples/half"].tolist() == [1.0] * 60

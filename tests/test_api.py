"""The Python API: what a notebook or a script calls, and what it gets."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import itertools
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import pytest
import torch
from builders import ROOT, make_record

import bdbench as bd
from bdbench.attacks.registry import attacks as bd_attacks
from bdbench.cells.cell import cell, recipe_of
from bdbench.datasets.toy import Toy
from bdbench.machine import devices
from bdbench.models import predict
from bdbench.models.plugins.errors import Signal
from bdbench.models.plugins.local import code_of
from bdbench.records.files import write
from bdbench.storage.cache import Cache
from bdbench.storage.folders import cache_root
from bdbench.trial import provenance
from bdbench.trial.harness import Finished, Harness

TOY = "toy(image_size=16, train_images=100, test_images=50)"
TINY: dict[str, Any] = {"dataset": TOY, "epochs": 1, "device": "cpu", "precision": "fp32"}
SMALL: dict[str, Any] = {
    "datasets": [TOY],
    "attacks": ["badnets"],
    "defenses": ["none"],
    "epochs": 1,
    "device": "cpu",
    "precision": "fp32",
    "progress": False,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[bd.CellRecord]:
    """The record of a cell of specs, run in a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BDBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("BDBENCH_DATA", raising=False)
        yield bd.run_cell(attack="badnets(poisoning_rate=0.2)", **TINY)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of the cells that are run, in their order."""
    keys: list[str] = []
    finish = Harness.finish

    def noted(self: Harness, chosen: Any, *rest: Any) -> Finished:
        keys.append(chosen.key)
        return finish(self, chosen, *rest)

    monkeypatch.setattr(Harness, "finish", noted)
    return keys


class Planned(Signal):
    """A cell is about to be run."""


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The cell that `bd.run_cell` would run."""

    def stop(self: Harness, chosen: Any, *rest: Any) -> Finished:
        raise Planned(chosen)

    monkeypatch.setattr(Harness, "finish", stop)

    def plan(**arguments: Any) -> Any:
        with pytest.raises(Planned) as stopped:
            bd.run_cell(**{"dataset": TOY, "device": "cpu", **arguments})
        return stopped.value.args[0]

    return plan


def refused(call: Callable[[], object]) -> str:
    """The one line that a call refuses with."""
    with pytest.raises(bd.InvalidInput) as refusal:
        call()
    line = str(refusal.value)
    assert len(line.splitlines()) == 1
    return line


def test_specs_and_objects_make_the_same_cell(made: bd.CellRecord) -> None:
    again = bd.run_cell(
        dataset=bd.dataset("toy", image_size=16, train_images=100, test_images=50),
        model=bd.model("wrn16_1"),
        attack=bd.attack("badnets", poisoning_rate=0.2),
        defense=bd.defense("none"),
        recipe=recipe_of(str(made.cell.recipe)),
        device="cpu",
    )
    assert again.key == made.key
    assert again.metrics == made.metrics
    assert again.cell == made.cell


def test_a_record_counts_its_images(made: bd.CellRecord) -> None:
    assert made.status == "ok"
    for count, images in [(made.clean_accuracy, 50), (made.asr_floor, 45)]:
        assert count is not None
        assert count.of == images
        assert count.rate == count.hits / count.of
        low, high = count.interval
        assert 0 <= low <= count.rate <= high <= 1
    assert made.attack_success_rate is not None
    assert made.attack_success_rate.of == 45


def test_the_network_of_a_record_has_its_accuracy(made: bd.CellRecord) -> None:
    assert isinstance(made.network, bd.Classifier)
    assert not any(module.training for module in made.network.modules())
    dataset = bd.dataset("toy", image_size=16, train_images=100, test_images=50)
    test = dataset.load([], Cache(cache_root())).test
    accuracy, success = made.clean_accuracy, made.attack_success_rate
    assert accuracy is not None
    assert success is not None
    assert int((predict(made.network, test.images) == test.labels).sum()) == accuracy.hits
    others = test.labels != 0
    fooled = predict(made.network, made.poisoned.triggered[others]) == 0
    assert int(fooled.sum()) == success.hits


def test_poisoned_images_are_those_that_the_cell_trained_on(made: bd.CellRecord) -> None:
    assert made.poisoned.mask.dtype == torch.bool
    assert int(made.poisoned.mask.sum()) == 0.2 * 100
    attack = bd.attack("badnets", poisoning_rate=0.2)
    for given in ("badnets(poisoning_rate=0.2)", attack):
        alone = bd.poison(given, dataset=TOY)
        assert torch.equal(alone.mask, made.poisoned.mask)
        assert torch.equal(alone.train.images, made.poisoned.train.images)
        assert torch.equal(alone.train.labels, made.poisoned.train.labels)
        assert torch.equal(alone.triggered, made.poisoned.triggered)
    assert not torch.equal(bd.poison(attack, dataset=TOY, seed=1).mask, made.poisoned.mask)


def test_a_cell_that_has_its_record_is_not_run_again(tmp_path: Path, trained: list[str]) -> None:
    first = bd.run_cell(results=tmp_path, **TINY)
    second = bd.run_cell(results=tmp_path, **TINY)
    assert trained == [first.key]
    assert second.key == first.key
    assert second.metrics == first.metrics
    assert [record.key for record in bd.load(tmp_path)] == [first.key]
    for part in ("network", "poisoned"):
        line = refused(lambda part=part: getattr(second, part))
        assert "bd.run_cell(" in line
        assert first.key in line
    assert bd.run_cell(results=tmp_path, curves=True, **TINY).curves
    assert len(trained) == 2
    assert bd.run_cell(seed=1, results=tmp_path, **TINY).key == trained[2]


def test_a_record_without_a_network_names_the_call_that_makes_it(
    made: bd.CellRecord, tmp_path: Path, planned: Callable[..., Any]
) -> None:
    write(tmp_path, made)
    read = bd.run_cell(attack="badnets(poisoning_rate=0.2)", results=tmp_path, **TINY)
    line = refused(lambda: read.network)
    call = line[line.index("bd.run_cell(") :]
    arguments = eval(call.replace("bd.run_cell", "dict"), {"dict": dict})
    assert planned(**arguments).key == read.key == made.key


def test_a_run_resumes_and_is_extended(
    tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = bd.run("quick", seeds=2, in_process=True, **SMALL)
    assert isinstance(first, bd.Results)
    assert len(trained) == len(first) == 2
    assert first.folder == Path("results/quick")
    assert not first.failed
    again = bd.run("quick", seeds=2, in_process=True, **SMALL)
    assert len(trained) == 2
    assert [record.key for record in again] == [record.key for record in first]
    more = bd.run("quick", seeds=3, in_process=True, **SMALL)
    assert len(trained) == 3
    assert {record.key for record in more} == {*trained}
    assert {record.key for record in bd.load("results/quick")} == {*trained}


def test_a_record_and_a_table_are_shown_in_a_few_words(tmp_path: Path) -> None:
    """An interpreter prints what an expression returns."""
    made = [make_record("none", "badnets", 930, 990), make_record("ft", "badnets", None)]
    for record in made:
        write(tmp_path, record)
    results = bd.load(tmp_path)
    shown = {record.labels["defense"]: repr(record) for record in results}
    axes = "toy · wrn16_1 · badnets"
    assert shown == {
        "none": f"<{axes} · none · seed 0: CA 93.0 %, ASR 99.0 %; cell {made[0].key}>",
        "ft": f"<{axes} · ft · seed 0: failed, RuntimeError; cell {made[1].key}>",
    }
    board = results.leaderboard()
    assert repr(board) == str(board) == board.markdown()


def test_a_run_prints_its_progress_only_on_request(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bd.run("quick", results=tmp_path, **SMALL)
    assert capfd.readouterr() == ("", "")
    bd.run("quick", results=tmp_path, **{**SMALL, "progress": True})
    assert "the only cell has its record" in capfd.readouterr().out


@pytest.mark.parametrize(
    "progress",
    [True, False],
)
def test_a_run_displays_its_progress_in_a_notebook_only_on_request(
    progress: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    displayed: list[object] = []
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("rich.jupyter.display", lambda *what: displayed.append(what))
    bd.run("quick", results=tmp_path, **{**SMALL, "progress": progress})
    assert bool(displayed) is progress


@pytest.mark.parametrize("name", ["null", "nan", "NA", "none_at_all"])
def test_the_frame_of_a_table_has_plugins_of_any_name(name: str, tmp_path: Path) -> None:
    for record in (make_record("none", name, 930, 990), make_record(name, name, 880, 20)):
        write(tmp_path, record)
    frame = bd.load(tmp_path).leaderboard().frame().set_index(["defense", "attack"])
    assert frame.loc[(name, name), "attack_success_rate"] == 0.02
    assert frame["tpr"].isna().all()
    assert frame["seeds"].tolist() == [1, 1]


def test_a_frame_has_a_row_for_each_record(made: bd.CellRecord, tmp_path: Path) -> None:
    failed = bd.Record(
        **{name: getattr(made, name) for name in bd.Record.__dataclass_fields__}
        | {"metrics": None, "status": "failed", "flags": ("not_finite", "no_op")}
    )
    frame = bd.Results(tmp_path, (made, failed)).frame()
    assert len(frame) == 2
    assert {
        *("key", "dataset", "model", "attack", "defense", "recipe", "seed", "status"),
        *("clean_accuracy", "attack_success_rate", "robust_accuracy", "asr_floor"),
        *("seconds", "seconds_own", "flags"),
    } <= {*frame.columns}
    row, other = (frame.iloc[n] for n in range(2))
    assert (row["key"], row["seed"], row["status"]) == (made.key, 0, "ok")
    assert row["attack"] == "badnets(poisoning_rate=0.2)"
    for metric in ("clean_accuracy", "attack_success_rate", "asr_floor"):
        assert row[metric] == getattr(made, metric).rate
    assert row["seconds"] > 0
    assert row["flags"] == " ".join(made.flags)
    assert frame["clean_accuracy"].isna().tolist() == [False, True]
    assert other["flags"] == "not_finite no_op"


@pytest.mark.parametrize(
    "folder", ["archive/cifar10-small", "attacks-cifar10", "table1-cifar10-bf16"]
)
def test_committed_records_give_the_committed_leaderboard(folder: str) -> None:
    results = bd.load(ROOT / "results" / folder)
    tables = ROOT / "results" / folder / "tables"
    assert len(results) == len(list((ROOT / "results" / folder / "records").glob("*.json")))
    board = results.leaderboard()
    assert board.markdown().encode() == (tables / "leaderboard.md").read_bytes()
    assert board.csv().encode() == (tables / "leaderboard.csv").read_bytes()
    assert str(board) == board.markdown()
    assert len(board.frame()) == board.csv().count("\n") - 1
    assert "<table>" in board._repr_html_()
    assert results._repr_html_() == board._repr_html_()


def test_committed_records_give_the_committed_table_of_the_paper() -> None:
    results = bd.load(ROOT / "results/archive/cifar10-small")
    tables = ROOT / "results/archive/cifar10-small/tables"
    for number in (1, 3):
        made = results.paper_table(number)
        assert made.markdown().encode() == (tables / f"table{number}.md").read_bytes()
        assert made.csv().encode() == (tables / f"table{number}.csv").read_bytes()
    assert "<table>" in results.paper_table(1)._repr_html_()
    assert "must be 1, 2, 3 or 5, got 4" in refused(lambda: results.paper_table(4))


def test_a_check_lists_promises_and_those_that_are_broken(
    tmp_path: Path, unregistered: None
) -> None:
    promises = bd.check("wrn16_1")
    assert promises
    for promise, kept, why in promises:
        assert promise.startswith("model wrn16_1: ")
        assert kept
        assert why is None
    file = tmp_path / "my_source.py"
    file.write_text(SILENT)
    broken = [each for each in bd.check(file) if not each.kept]
    assert broken
    assert all(each.promise.startswith("attack silent: ") and each.why for each in broken)
    assert "registers nothing" in refused(lambda: bd.check(empty(tmp_path)))


SILENT = """
from dataclasses import dataclass
from bdbench.attacks import Attack, register

@register("silent")
@dataclass(frozen=True)
class Silent(Attack):
    def trigger(self, images):
        raise RuntimeError("no such luck")
    def poison(self, clean, rng):
        raise RuntimeError("no such luck")
"""


def empty(folder: Path) -> Path:
    (folder / "empty.py").write_text("")
    return folder / "empty.py"


DROPS = tuple(round(0.001 * n, 3) for n in range(100, 370))
"""Its text is short enough for a spec, but not with all other fields of a recipe."""


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: bd.attack("badnet"), "unknown attack 'badnet'; did you mean 'badnets'?"),
        (lambda: bd.defense("cdb"), "unknown defense 'cdb'; did you mean 'cbd'?"),
        (lambda: bd.dataset("cifr10"), "unknown data set 'cifr10'; did you mean 'cifar10'?"),
        (lambda: bd.model("wrn16"), "unknown model 'wrn16'; did you mean 'wrn16_1'?"),
        (lambda: bd.attack("blend", alhpa=0.1), "has no field 'alhpa'; did you mean 'alpha'?"),
        (lambda: bd.attack("blend", alpha="much"), "alpha of attack 'blend' must be float"),
        (lambda: bd.attack("badnets", poisoning_rate=2), "must be in (0, 1], got 2.0"),
        (lambda: bd.defense("cbd", t1=0), "t1 must be at least 1, got 0"),
        (lambda: bd.dataset("toy", train_images=3), "train_images of toy must be at least 10"),
        (lambda: bd.attack("x\n" * 3000), "unknown attack"),
        (lambda: bd.run_cell(attack="badnet"), "did you mean 'badnets'?"),
        (lambda: bd.run_cell(attack="badnets(target=10)", **TINY), "0 to 9, got 10"),
        (lambda: bd.run_cell(attack="badnets(margin=14)", **TINY), "does not fit 16 x 16"),
        (lambda: bd.run_cell(defense="cbd(t1="), "expected name or name(field=value, ...)"),
        (lambda: bd.run_cell(recipe="resipe(epochs=1)"), "a recipe is written recipe("),
        (lambda: bd.run_cell(recipe="recipe(epoch=1)"), "did you mean 'epochs'?"),
        (lambda: bd.run_cell(recipe={"epochs": 1}), "a recipe is written recipe("),
        (lambda: bd.run_cell(recipe=3), "a recipe is written recipe("),
        (lambda: bd.poison("blend", recipe=["recipe(epochs=1)"]), "a recipe is written recipe("),
        (lambda: bd.run(recipe=bd.Recipe(epochs=1)), "a recipe is written recipe("),
        (lambda: bd.run_cell(recipe=bd.Recipe(drops=DROPS)), "the recipe has 2,"),
        (lambda: bd.run_cell(recipe=f"recipe(drops={DROPS})"), "the recipe has 2,"),
        (lambda: bd.run(recipe=f"recipe(drops={DROPS})"), "the recipe has 2,"),
        (lambda: bd.run_cell(seed=-1), "a seed must be a whole number from 0 to"),
        (lambda: bd.run_cell(seed=2**63), "a seed must be a whole number from 0 to"),
        (lambda: bd.poison("blend", seed=1.0), "a seed must be a whole number from 0 to"),
        (lambda: bd.run(seed="1"), "a seed must be a whole number from 0 to"),
        (lambda: bd.run(attacks="badnet"), "unknown attack 'badnet'; did you mean 'badnets'?"),
        (lambda: bd.run(defenses=bd.attack("blend")), "defense must be a spec or a Defense, got"),
        (lambda: bd.run(plugins="absent.py"), "there is no plugin file 'absent.py'"),
        (lambda: bd.run_cell(epochs=0), "epochs must be at least 1"),
        (lambda: bd.run_cell(device="cuda:9"), "device 'cuda:9' does not exist"),
        (lambda: bd.run_cell(precision="fp61"), "unknown precision 'fp61'"),
        (
            lambda: bd.run_cell(dataset="cifar10", data="/nowhere"),
            "there is no folder /nowhere",
        ),
        (
            lambda: bd.poison("blend", dataset="gtsrb", data="/nowhere"),
            "there is no folder /nowhere",
        ),
        (lambda: bd.run("quik"), "unknown suite 'quik'; did you mean 'quick'?"),
        (
            lambda: bd.run(datasets=["cifar10"], data="/nowhere"),
            "there is no folder /nowhere",
        ),
        (lambda: bd.run(seeds=0), "seeds must be at least 1"),
        (lambda: bd.run(jobs=0), "jobs must be at least 1, got 0"),
        (lambda: bd.run(limit=0), "limit must be above 0"),
        (lambda: bd.run(plugins=["absent.py"]), "there is no plugin file 'absent.py'"),
        (lambda: bd.load("/nowhere"), "no records in /nowhere/records"),
        (lambda: bd.check("badnet"), "unknown plugin 'badnet'; did you mean 'badnets'?"),
        (lambda: bd.check("absent.py"), "there is no plugin file 'absent.py'"),
    ],
)
def test_a_mistake_is_refused_in_one_line(
    call: Callable[[], object],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert complaint in refused(call)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


class OutOfLuck(Exception):
    """An exception that no library raises."""


@dataclass(frozen=True)
class Breaks(bd.Defense):
    def fit(self, data: bd.ImageSet, context: bd.Context) -> bd.Classifier:
        raise OutOfLuck("no such luck")


@dataclass(frozen=True)
class BreaksLater(bd.Defense):
    def fit(self, data: bd.ImageSet, context: bd.Context) -> bd.Classifier:
        if "NO_LUCK" in os.environ:
            raise OutOfLuck("no such luck")
        return context.build().eval()


def test_a_failed_addition_leaves_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: dict[str, Any] = {"attack": "none", "defense": BreaksLater(), "results": tmp_path}
    bd.run_cell(**chosen, **TINY)
    (path,) = (tmp_path / "records").iterdir()
    before = path.read_bytes()
    monkeypatch.setenv("NO_LUCK", "1")
    for addition in ("curves", "save"):
        with pytest.raises(OutOfLuck):
            bd.run_cell(**chosen, **{addition: True}, **TINY)
    assert path.read_bytes() == before


@dataclass(frozen=True)
class Untrained(bd.Defense):
    """The cheapest defense."""

    scale: float = 1.0

    def fit(self, data: bd.ImageSet, context: bd.Context) -> bd.Classifier:
        return context.build().eval()


def test_a_cell_raises_what_its_defense_raises(tmp_path: Path, trained: list[str]) -> None:
    for _ in range(2):
        with pytest.raises(OutOfLuck, match="no such luck") as raised:
            bd.run_cell(defense=Breaks(), results=tmp_path, **TINY)
        assert raised.traceback[-1].name == "fit"
    assert len(trained) == 2
    (record,) = bd.load(tmp_path).failed
    assert record.error is not None
    assert record.error.type == "OutOfLuck"


def test_a_cell_that_fails_leaves_the_others_of_a_run_alone(tmp_path: Path) -> None:
    chosen = [Breaks(), Untrained(), "none"]
    results = bd.run("quick", results=tmp_path, **{**SMALL, "defenses": chosen})
    assert [record.status for record in results] == ["failed", "ok", "ok"]
    (failed,) = results.failed
    assert failed.labels.defense == "Breaks"
    assert failed.error is not None
    assert failed.error.message == "no such luck"
    assert "<table>" in results._repr_html_()


def test_one_value_is_a_list_of_it_alone(tmp_path: Path) -> None:
    one = {"datasets": TOY, "attacks": "badnets", "defenses": Untrained(), "seed": 3}
    results = bd.run("quick", results=tmp_path, **{**SMALL, **one})
    listed = {name: [value] for name, value in one.items()}
    again = bd.run("quick", results=tmp_path, **{**SMALL, **listed})
    assert [record.key for record in results] == [record.key for record in again]
    assert [record.cell.seed for record in results] == [3]
    wide = results.leaderboard(columns="floor")
    assert wide.markdown() == results.leaderboard(columns=["floor"]).markdown()
    assert wide.markdown() != results.leaderboard().markdown()


def test_a_class_that_is_passed_as_an_object_has_its_code_in_the_record(tmp_path: Path) -> None:
    record = bd.run_cell(defense=Untrained(scale=2), results=tmp_path, **TINY)
    assert str(record.cell.defense) == "Untrained(scale=2.0)"
    assert "return context.build().eval()" in record.provenance.code["defense"]
    (kept,) = bd.load(tmp_path)
    assert kept.provenance.code == record.provenance.code
    assert kept.provenance.code.keys() == {"defense"}
    assert record.key != bd.run_cell(defense=Untrained(), results=tmp_path, **TINY).key


@dataclass(frozen=True)
class Negative(bd.Attack):
    def trigger(self, images: torch.Tensor) -> torch.Tensor:
        return 255 - images

    def poison(self, clean: bd.ImageSet, rng: torch.Generator) -> bd.Poisoned:
        return bd.dirty_label(self, clean, rng)


def small_network(classes: int, size: int, deviation: float = 1.0) -> bd.Classifier:
    return bd.model("wrn16_1", deviation=deviation).build(classes, size)


@dataclass(frozen=True)
class Generated(Toy):
    name = "generated"


@pytest.mark.parametrize(
    ("axis", "plugin"),
    [
        ("dataset", Generated(image_size=16, train_images=100, test_images=50)),
        ("model", bd.Model(small_network, {"deviation": 2.0})),
        ("attack", Negative(poisoning_rate=0.2)),
        ("defense", Untrained()),
    ],
)
def test_an_object_of_any_kind_runs_in_a_cell_and_in_a_suite(
    axis: str, plugin: Any, tmp_path: Path
) -> None:
    record = bd.run_cell(**{**TINY, axis: plugin})
    (other,) = bd.run("quick", results=tmp_path, **{**SMALL, f"{axis}s": [plugin]})
    for each in (record, other):
        assert each.status == "ok"
        assert each.provenance.code.keys() == {axis}
    assert record.labels[axis] == other.labels[axis]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ModuleType]]:
    """Load a user's script as a module. Each call is a later edit of it, and may write other files
    beside it."""
    edits = itertools.count()

    def load(source: str, others: Mapping[str, str] = MappingProxyType({})) -> ModuleType:
        folder = tmp_path / f"edit{next(edits)}"
        for name, text in {"script.py": source, **others}.items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        forget()
        spec = importlib.util.spec_from_file_location("script", folder / "script.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["script"] = module
        with monkeypatch.context() as patch:
            patch.syspath_prepend(folder)
            spec.loader.exec_module(module)
        return module

    def forget() -> None:
        for name in ("script", "helper", "deeper", "parts", "parts.deeper"):
            sys.modules.pop(name, None)

    yield load
    forget()


SCRIPT = """
import functools
import operator
import re
from dataclasses import dataclass
from pathlib import Path

import torch

import bdbench as bd

class Settings:
    def __init__(self):
        self.depth = 7

ROUNDS, SHOWN, START = 3, 30, 300
NAMES = ("one", "two")
FILE = Path("five")
TIMES = functools.partial(operator.mul, 6)
LONG = re.compile("b" * 300)

def deepest(x):
    return x + 8

def helper(x):
    return deepest(x) + 9

def twice(method):
    @functools.wraps(method)
    def wrapper(*given):
        return method(*given) * 10
    return wrapper

class Base(bd.Defense):
    def inherited(self):
        return 11

@dataclass(frozen=True)
class Mine(Base):
    keep: float = 0.12
    level = 13
    partial = functools.partialmethod(operator.add, 15)

    def fit(self, data, context):
        inner = lambda: [SHOWN + each for each in range(ROUNDS)]
        helper(5), FILE, NAMES, TIMES(1), LONG, inner()
        return context.build().eval()

    @property
    def undefended(self):
        return 16 - 16

    @functools.cached_property
    def cached(self):
        return 17

    @staticmethod
    def static():
        return 18

    @classmethod
    def of_class(cls):
        return 19

    @torch.no_grad()
    def without_gradient(self):
        return 20

    @twice
    def decorated(self):
        return 21

    def begun(self, start=START):
        return start
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param("context.build().eval()", "context.build('x').eval()", id="method"),
        pytest.param("keep: float = 0.12", "keep: float = 0.5", id="default of a field"),
        pytest.param("level = 13", "level = 14", id="class variable"),
        pytest.param("deepest(x) + 9", "deepest(x) + 10", id="helper"),
        pytest.param("return x + 8", "return x + 9", id="helper of a helper"),
        pytest.param("3, 30, 300", "4, 30, 300", id="constant"),
        pytest.param("3, 30, 300", "3, 40, 300", id="constant of an inner function"),
        pytest.param('"two"', '"three"', id="part of a constant"),
        pytest.param("return 11", "return 12", id="method of a base"),
        pytest.param("16 - 16", "17 - 17", id="property"),
        pytest.param("return 18", "return 19", id="static method"),
        pytest.param("return 19", "return 20", id="class method"),
        pytest.param("return 20", "return 21", id="method of a decorator of torch"),
        pytest.param("return 21", "return 22", id="method of a decorator of the script"),
        pytest.param("return 17", "return 18", id="cached property"),
        pytest.param(*("method(*given) * 10", "method(*given) * 11"), id="decorator"),
        pytest.param("3, 30, 300", "3, 30, 400", id="constant as the default of a parameter"),
        pytest.param('Path("five")', 'Path("six")', id="path"),
        pytest.param("mul, 6", "mul, 7", id="partial"),
        pytest.param('"b" * 300', '"b" * 301', id="long pattern"),
        pytest.param("add, 15", "add, 16", id="partial method"),
    ],
)
def test_an_edit_of_a_local_class_changes_the_key(
    before: str, after: str, script: Callable[..., ModuleType]
) -> None:
    assert SCRIPT.count(before) == 1
    first, edited = script(SCRIPT), script(SCRIPT.replace(before, after))
    assert code_of(first.Mine).whole
    assert code_of(edited.Mine).whole
    assert key_of(first) != key_of(edited)


@pytest.mark.parametrize("name", ['NAMES = ("one", "two")', "level = 13"])
@pytest.mark.parametrize(
    "value",
    ["torch.ones(1)", "torch.ones(1).numpy()", "Settings()", "[torch.ones(1)]", "{1: Settings()}"],
)
def test_code_with_a_value_that_has_no_text_is_never_the_same(
    name: str, value: str, script: Callable[..., ModuleType]
) -> None:
    """Whether it is a value of the module or of the class."""
    assert SCRIPT.count(name) == 1
    source = SCRIPT.replace(name, f"{name.partition(' = ')[0]} = {value}")
    first, other = (script(source) for _ in range(2))
    assert not code_of(first.Mine).whole
    # What it reads may have changed between two calls.
    assert code_of(first.Mine) != code_of(first.Mine)
    assert key_of(first) != key_of(other)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("return 18", "return globals()['START']"),
        ("return 18", "return eval('START')"),
        ("return 18", "return [exec('START') for _ in range(3)]"),
        ("return 18", "return __import__('script').START"),
        ("return 18", "import importlib; return importlib.import_module('script')"),
        ("return 18", "from importlib import import_module; return import_module('script')"),
        ("return x + 8", "return globals()['START']"),
        ("ROUNDS, SHOWN, START = 3, 30, 300", "ROUNDS, SHOWN, START = 3, 30, []; START += [START]"),
    ],
)
def test_code_that_is_found_at_run_time_is_never_the_same(
    before: str, after: str, script: Callable[..., ModuleType]
) -> None:
    assert SCRIPT.count(before) == 1
    made = script(SCRIPT.replace(before, after)).Mine
    assert not code_of(made).whole
    assert code_of(made) != code_of(made)


def test_code_whose_variable_has_no_value_yet_is_never_the_same() -> None:
    @dataclass(frozen=True)
    class Early(Untrained):
        def fit(self, data: bd.ImageSet, context: bd.Context) -> bd.Classifier:
            return later

    assert not code_of(Early).whole
    later = bd.model("wrn16_1").build(10, 16)


def key_of(module: ModuleType) -> str:
    return cell(TOY, "wrn16_1", "badnets", module.Mine(), bd.Recipe(epochs=1), 0).key


PLAIN = """
from dataclasses import dataclass
import helper
import bdbench as bd

@dataclass(frozen=True)
class Mine(bd.Defense):
    def fit(self, data, context):
        return helper.network(context)
"""


def test_a_class_that_is_not_edited_keeps_its_key(script: Callable[..., ModuleType]) -> None:
    """Even if the rest of its script is edited."""
    unread = SCRIPT.replace("import operator", "import operator\nUNREAD = 1") + "\nUNREAD = 2\n"
    modules = [script(source) for source in (SCRIPT, SCRIPT, unread)]
    assert len({key_of(module) for module in modules}) == 1


NETWORK = "def network(context):\n    return context.build('one').eval()\n"


@pytest.mark.parametrize(
    ("statement", "call", "files"),
    [
        pytest.param("import helper", "helper.network", {"helper.py": NETWORK}, id="module"),
        pytest.param(
            *("", "__import__('helper').network"), {"helper.py": NETWORK}, id="module of a method"
        ),
        pytest.param("import helper as h", "h.network", {"helper.py": NETWORK}, id="short name"),
        pytest.param(
            "from helper import network", "network", {"helper.py": NETWORK}, id="function"
        ),
        pytest.param("import parts", "parts.network", {"parts/__init__.py": NETWORK}, id="package"),
        pytest.param(
            *("from helper import network", "network"),
            {"helper.py": "from deeper import network\n", "deeper.py": NETWORK},
            id="function of a second module",
        ),
        pytest.param(
            *("import helper", "helper.network"),
            {"helper.py": "from deeper import network\n", "deeper.py": NETWORK},
            id="module of a module",
        ),
        pytest.param(
            *("import parts.deeper", "parts.deeper.network"),
            {"parts/__init__.py": "", "parts/deeper.py": NETWORK},
            id="module of a package",
        ),
    ],
)
def test_an_edit_of_an_imported_module_changes_the_key(
    statement: str, call: str, files: dict[str, str], script: Callable[..., ModuleType]
) -> None:
    source = PLAIN.replace("import helper", statement).replace("helper.network", call)
    if not statement:
        source = source.replace(
            "return __import__('helper')", "import helper\n        return helper"
        )
    edited = {name: text.replace("'one'", "'two'") for name, text in files.items()}
    assert edited != files
    assert key_of(script(source, files)) != key_of(script(source, edited))


def test_an_edit_that_is_not_loaded_is_not_code_of_the_class_that_runs(
    script: Callable[..., ModuleType],
) -> None:
    """Otherwise the numbers of the old class would be stored as those of the new one."""
    edited = SCRIPT.replace("return 11", "return 12")
    old = script(SCRIPT)
    Path(str(old.__file__)).write_text(edited)
    stale = code_of(old.Mine).text
    assert stale != code_of(script(edited).Mine).text


def test_an_edited_class_is_trained_again(
    script: Callable[..., ModuleType], tmp_path: Path, trained: list[str]
) -> None:
    source = PLAIN.replace("import helper", "").replace(
        "helper.network(context)", "context.build('one').eval()"
    )
    edited = source.replace("'one'", "'two'")
    one, same, other = (
        bd.run_cell(defense=script(each).Mine(), results=tmp_path, **TINY)
        for each in (source, source, edited)
    )
    assert same.key == one.key
    assert trained == [one.key, other.key]
    assert one.network.state_dict().keys() == other.network.state_dict().keys()
    assert any(
        not torch.equal(weights, other.network.state_dict()[name])
        for name, weights in one.network.state_dict().items()
    )


def test_a_script_that_is_run_again_after_an_edit_trains_again(tmp_path: Path) -> None:
    """`inspect` finds the source of a class of `__main__` by its methods only."""
    (tmp_path / "mine.py").write_text(
        textwrap.dedent("""
        from dataclasses import dataclass
        import bdbench as bd

        @dataclass(frozen=True)
        class Mine(bd.Defense):
            def fit(self, data, context):
                print("trains")
                return context.build("one").eval()

        record = bd.run_cell(defense=Mine(), results="results", **TINY)
        print(record.key, "build" in record.provenance.code["defense"])
        """)
    )
    (tmp_path / "driver.py").write_text(
        textwrap.dedent("""
        import json, runpy, sys
        from pathlib import Path

        tiny = json.loads(sys.argv[1])
        for edit in (("", ""), ("", ""), ("one", "another")):
            file = Path("mine.py")
            file.write_text(file.read_text().replace(*edit))
            runpy.run_path("mine.py", {"TINY": tiny}, run_name="__main__")
        """)
    )
    shown = python(tmp_path, "driver.py", json.dumps(TINY)).split("\n")
    assert [line == "trains" for line in shown] == [True, False, False, True, False]
    first, second, third = (shown[n].split() for n in (1, 2, 4))
    assert first == second
    assert first[0] != third[0]
    assert {first[1], third[1]} == {"True"}


def python(folder: Path, *arguments: str, **variables: str) -> str:
    """What a Python process prints that runs in a folder."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_code_of_a_class_is_the_same_in_every_process(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        textwrap.dedent("""
        from bdbench.models.plugins.local import code_of

        NAMES = {"one", "two", "three", "four", "five", "six"}

        class Mine:
            def fit(self):
                return NAMES

        print(code_of(Mine))
        """)
    )
    one, other = (python(tmp_path, "mine.py", PYTHONHASHSEED=seed) for seed in "12")
    assert one == other


def without_a_file(value: int = 1) -> Any:
    """A class whose source is in no file."""
    source = f"""
        from dataclasses import dataclass
        import bdbench as bd

        @dataclass(frozen=True)
        class Mine(bd.Defense):
            def fit(self, data, context):
                return context.build("{value}").eval()
        """
    space: dict[str, Any] = {"__name__": "nowhere"}
    exec(textwrap.dedent(source), space)
    return space["Mine"]


def test_code_of_a_class_without_a_source_is_never_the_same() -> None:
    one, other = without_a_file(1), without_a_file(2)
    assert not code_of(one).whole
    assert code_of(one) != code_of(one)
    assert code_of(one).text != code_of(other).text


@pytest.mark.filterwarnings("always:the record of Mine is not kept")
def test_a_record_of_a_class_without_a_source_is_returned_and_never_stored(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="the record of Mine is not kept"):
        record = bd.run_cell(defense=without_a_file()(), results=tmp_path, **TINY)
    assert record.status == "ok"
    results = bd.run(
        "quick", results=tmp_path, **{**SMALL, "defenses": [without_a_file()(), without_a_file()()]}
    )
    assert [each.status for each in results] == ["ok", "ok"]
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.filterwarnings("always:the record of Mine is not kept")
def test_a_record_of_incomplete_code_is_returned_and_never_stored(
    tmp_path: Path, script: Callable[..., ModuleType], capfd: pytest.CaptureFixture[str]
) -> None:
    source = PLAIN.replace(
        "import helper", "class Helper:\n    network = str\n\nhelper = Helper()"
    ).replace("helper.network(context)", "helper and context.build().eval()")
    mine = script(source).Mine
    assert not code_of(mine).whole
    changes = {"defenses": [mine()], "progress": True}
    results = bd.run("quick", results=tmp_path / "results", **{**SMALL, **changes})
    assert "warning: the record of Mine is not kept" in capfd.readouterr().out
    assert [each.status for each in results] == ["ok"]
    assert not list(tmp_path.rglob("*.json"))


def test_a_class_with_the_name_of_a_registered_one_is_refused(trained: list[str]) -> None:
    namesake = type("cbd", (Untrained,), {"__module__": __name__})
    line = refused(lambda: bd.run_cell(defense=namesake(), **TINY))
    assert "the defense 'cbd' exists already" in line
    line = refused(lambda: bd.run("quick", **{**SMALL, "defenses": ["none", namesake()]}))
    assert "the defense 'cbd' exists already" in line
    assert not trained


def test_workers_refuse_a_local_class_before_anything_trains(
    tmp_path: Path, trained: list[str]
) -> None:
    chosen = ["none", Untrained()]
    line = refused(
        lambda: bd.run("quick", jobs=2, results=tmp_path / "r", **{**SMALL, "defenses": chosen})
    )
    assert "defense Untrained is defined in a notebook or a script" in line
    assert not trained
    assert not (tmp_path / "r").exists()


@dataclass(frozen=True)
class Required(bd.Defense):
    scale: float

    def fit(self, data: bd.ImageSet, context: bd.Context) -> bd.Classifier:
        return context.build().eval()


def test_a_setting_without_a_default_is_refused(planned: Callable[..., Any]) -> None:
    line = refused(lambda: planned(defense=Required(1.0)))
    assert "scale of defense 'Required' has no default" in line


@pytest.mark.parametrize("given", [{"epochs": 3}, {"precision": "bf16"}], ids=str)
def test_overrides_change_a_recipe_object(
    given: dict[str, Any], planned: Callable[..., Any]
) -> None:
    recipe = planned(recipe=bd.Recipe(), **given).recipe
    assert vars(recipe).items() >= given.items()


def test_a_recipe_that_states_its_precision_has_it(planned: Callable[..., Any]) -> None:
    assert planned(recipe="recipe(precision='bf16')").recipe.precision == "bf16"


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({"recipe": bd.Recipe(epochs=1), "epochs": 0}),
        *(pytest.param({"seed": seed}) for seed in (1.5, "1")),
        {"defense": Untrained},
        {"defense": bd.attack("blend")},
        {"attack": bd.defense("none")},
        {"attack": 3},
        {"model": bd.attack("blend")},
    ],
)
def test_an_argument_of_the_wrong_kind_is_refused_before_training(
    arguments: dict[str, Any], trained: list[str]
) -> None:
    refused(lambda: bd.run_cell(**{**TINY, **arguments}))
    assert not trained


def test_results_that_cannot_be_written_are_refused_before_training(
    tmp_path: Path, trained: list[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    refused(lambda: bd.run_cell(results=tmp_path / "file" / "results", **TINY))
    assert not trained


def test_an_unknown_name_is_not_an_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'bdbench' has no attribute 'run_cells'"):
        bd.run_cells  # noqa: B018


HIDDEN = """
from dataclasses import dataclass, field
import bdbench as bd

@dataclass(frozen=True)
class Stamp(bd.Attack):
    level: object = field(default=None, repr=False)
    levels: list = field(default_factory=list, repr=False)
    found: object = field(init=False, default=None, repr=False)

    def trigger(self, images):
        images = images.clone()
        images[:, :, :4, :4] = self.level or 0
        return images

    def poison(self, clean, rng):
        return bd.dirty_label(self, clean, rng)

@dataclass(frozen=True)
class Reads(Stamp):
    def trigger(self, images):
        images = images.clone()
        images[:, :, :4, :4] = LEVEL[0]
        return images

LEVEL = __import__("torch").tensor([0])

class Plain(bd.Defense):
    undefended = 0

    def __init__(self, size=3, *, depth: int = 1):
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "depth", depth)
        vars(self).update(parts=[size] * depth, scale=LEVEL + size, head=Layer())

    def fit(self, data, context):
        return context.build().eval()

class Layer: ...

class Options(Plain):
    def __init__(self, **options):
        object.__setattr__(self, "options", options)
"""


def test_an_object_with_more_than_its_settings_is_refused(
    script: Callable[..., ModuleType],
) -> None:
    """Or else the cache would give it the images of another one."""
    made = script(HIDDEN)
    assert bd.poison(made.Stamp(), dataset=TOY, device="cpu").mask.any()
    with pytest.raises(bd.InvalidInput, match=r"^level of attack Stamp is no setting, so nothing"):
        bd.poison(made.Stamp(level=255), dataset=TOY, device="cpu")
    for levels in ([255], torch.ones(2)):
        with pytest.raises(bd.InvalidInput, match=r"^levels of attack Stamp is no setting"):
            bd.poison(made.Stamp(levels=levels), dataset=TOY, device="cpu")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("Plain()", None),
        ("Plain(4, depth=2)", None),
        ("Options()", "**options of defense 'Options' is no setting that a spec can write"),
        ("later(alpha=1)", "alpha of defense Plain is no setting"),
        ("later(parts=[4])", "parts of defense Plain is no setting"),
        ("later(scale=LEVEL)", "scale of defense Plain is no setting"),
        ("later(head=None)", "head of defense Plain is no setting"),
    ],
)
def test_an_object_with_an_attribute_that_its_settings_do_not_give_is_refused(
    how: str, said: str | None, script: Callable[..., ModuleType]
) -> None:
    module = script(HIDDEN)

    def later(**attributes: Any) -> Any:
        made = module.Plain()
        vars(made).update(attributes)
        return made

    made = eval(how, {**vars(module), "later": later})
    if said is None:
        assert cell(TOY, "wrn16_1", "none", made, bd.Recipe(), 0).defense is made
    else:
        line = refused(lambda: cell(TOY, "wrn16_1", "none", made, bd.Recipe(), 0))
        assert line.startswith(said)


@dataclass(frozen=True)
class Used(bd.Defense):
    """Keeps what it has fitted, as estimators of scikit-learn do, and uses up a setting."""

    seeds: list[int] = field(default_factory=lambda: [1, 2])
    cache: dict[str, bd.Classifier] = field(default_factory=dict, init=False, repr=False)

    def fit(self, data: bd.ImageSet, context: bd.Context) -> bd.Classifier:
        context.journal.scalars |= {"seed": self.seeds.pop(0), "cached": len(self.cache)}
        return self.cache.setdefault("network", context.build().eval())


def test_what_a_cell_leaves_in_a_plugin_is_in_no_other_cell(tmp_path: Path) -> None:
    used = Used()
    changes: Mapping[str, Any] = {"defenses": [used], "seed": [0, 1]}
    records = list(bd.run("quick", results=tmp_path, **{**SMALL, **changes}))
    assert [dict(each.diagnostics.scalars) for each in records] == [{"seed": 1, "cached": 0}] * 2
    assert len({each.provenance.network_sha256 for each in records}) == 2
    assert used == Used()


def test_a_class_that_reads_a_tensor_is_poisoned_anew(script: Callable[..., ModuleType]) -> None:
    """The same object, too: nobody sees that the tensor has changed."""
    made = script(HIDDEN)
    attack = made.Reads()
    corners = []
    for level in (0, 255):
        made.LEVEL[0] = level
        found = bd.poison(attack, dataset=TOY, device="cpu")
        corners.append(found.train.images[found.mask][:, 0, 0, 0].unique().tolist())
    assert corners == [[0], [255]]


def test_a_method_that_python_gives_to_a_class_is_not_its_code(
    script: Callable[..., ModuleType],
) -> None:
    """As `__replace__` of dataclasses since Python 3.13."""
    kind = script(HIDDEN).Stamp
    before = code_of(kind)
    kind.__replace__ = dataclasses.replace
    assert before.whole
    assert code_of(kind).whole


def test_calls_have_the_precision_of_the_suites(
    planned: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for call in (bd.run_cell, partial(bd.evaluate, {})):
        assert inspect.signature(call).parameters["precision"].default is None
    # A processor on which `auto` is bf16.
    monkeypatch.setattr(devices, "has_bf16", lambda: True)
    attack = "trojan(mode='inverted')"
    assert planned(dataset=TOY, attack=attack, precision="auto").recipe.precision == "bf16"
    assert planned(dataset=TOY, attack=attack, device="cpu").recipe.precision == "fp32"


def test_a_home_folder_is_found_in_every_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mine", make_record("none", "badnets", 850, 990))
    assert bd.load("~/mine").folder == tmp_path / "mine"
    (tmp_path / "file").touch()
    with pytest.raises(bd.InvalidInput, match=re.escape(str(tmp_path / "file"))):
        bd.run_cell(results="~/file/inside", **TINY)
    assert not (tmp_path / "~").exists()


class Forgets(bd.Defense):
    def __init__(self, k: int = 1) -> None:
        self._k = k

    def fit(self, data: bd.ImageSet, context: bd.Context) -> bd.Classifier:
        return context.build()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: bd.attack("badnets(target=1)"), "write bd.attack('badnets', target=1)"),
        (lambda: bd.defense("cbd()", t1=3), "write bd.defense('cbd', t1=3)"),
        (lambda: bd.attack(None), "the name of a plugin must be text, got None"),
        (lambda: bd.load(3), "a name or path must be text or a Path, got 3"),
        (lambda: bd.run(None), "a name or path must be text or a Path, got None"),
        (lambda: bd.run(plugins=3), "a name or path must be text or a Path, got 3"),
        (lambda: bd.run_cell(data=3, **TINY), "a name or path must be text or a Path, got 3"),
        (lambda: bd.evaluate(3, dataset=TOY, attack="blend"), "weights must be a file, a module"),
        (lambda: bd.run(jobs="all"), "jobs must be a whole number or None, got 'all'"),
        (lambda: bd.run(jobs=1.5), "jobs must be a whole number or None, got 1.5"),
        (lambda: bd.run(jobs=True), "jobs must be a whole number or None, got True"),
        (lambda: bd.run(jobs="auto", seeds=0), "seeds must be at least 1, got 0"),
        (lambda: bd.run(threads="2"), "threads must be a whole number or None, got '2'"),
        (lambda: bd.run(limit="5"), "limit must be a number or None, got '5'"),
        (lambda: bd.run(budget="5"), "budget must be a number or None, got '5'"),
        (lambda: bd.run(graphs="x"), "graphs must be True or False, got 'x'"),
        (lambda: bd.run(stale=1), "stale must be True or False, got 1"),
        (lambda: bd.run(seed=range(0)), "seed has no seed in it: leave it out"),
        (lambda: bd.run_cell(curves="no", **TINY), "curves must be True or False, got 'no'"),
        (lambda: bd.run_cell(**{**TINY, "precision": 16}), "precision must be text or None, got"),
    ],
)
def test_an_argument_of_the_wrong_type_is_one_line(
    call: Callable[[], Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused(call)
    assert not [*tmp_path.iterdir()]


def test_true_is_no_table() -> None:
    with pytest.raises(bd.InvalidInput, match="table must be 1, 2, 3 or 5, got True"):
        bd.Results(Path(), ()).paper_table(True)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: bd.check(Forgets()), "check takes a plugin file, or the name or spec"),
        (lambda: bd.run_cell(defense=Forgets(), **TINY), "does not keep its setting k"),
        (
            lambda: bd.run_cell(model=bd.Model(partial(print), {}), **TINY),
            "has no name to call the model by",
        ),
        (
            lambda: bd.run_cell(**{**TINY, "device": torch.device("cuda:99")}),
            "device 'cuda:99' does not exist",
        ),
    ],
)
def test_a_natural_mistake_is_one_line(call: Callable[[], Any], said: str) -> None:
    with pytest.raises(bd.InvalidInput, match=said):
        call()


def test_a_failed_record_does_not_say_which_images_are_meant(
    tmp_path: Path, trained: list[str]
) -> None:
    """They may be why the cell failed."""
    made = bd.run_cell(attack="badnets", results=tmp_path, **TINY)
    failed = make_record("none", "badnets")
    other = made.provenance.with_(data_sha256="cd" * 32)
    write(
        tmp_path,
        dataclasses.replace(
            bd.Record(**{f.name: getattr(made, f.name) for f in dataclasses.fields(bd.Record)}),
            status="failed",
            metrics=None,
            error=failed.error,
            classes=None,
            provenance=other,
        ),
    )
    assert bd.run_cell(attack="badnets", results=tmp_path, **TINY).status == "ok"
    assert len(trained) == 2


def test_a_part_that_a_notebook_defines_is_code_of_the_whole(
    script: Callable[..., ModuleType],
) -> None:
    text = HIDDEN.replace("class Stamp", "class Inner").replace("(Stamp)", "(Inner)")
    keys = []
    for level in (0, 1):
        made = script(text.replace("self.level or 0", f"self.level or {level}"))
        bd_attacks.unregister([name for name in ("inner",) if name in bd_attacks.names()])
        bd_attacks.register("inner")(made.Inner)
        made.Inner.__module__ = "__main__"
        mixed = cell(
            TOY, "wrn16_1", "mixed(attacks=('badnets','inner'))", "none", bd.Recipe(epochs=1), 0
        )
        assert "attack" in mixed.local
        keys.append(provenance.sources(mixed)["attack"])
    bd_attacks.unregister(["inner"])
    assert len({*keys}) == 2

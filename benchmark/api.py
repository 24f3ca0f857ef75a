"""bdbench from Python: `import bdbench as bd`.

Attacks, defenses, data sets and models are given as specs, such as "cbd(t1=3)", or as objects, also
of classes that a notebook defines.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pandas as pd
import torch

from bdbench.attacks import Attack
from bdbench.attacks.registry import attacks as _attacks
from bdbench.cells.cell import Cell, cell, check_network, check_trigger
from bdbench.cells.grid import recipe_for
from bdbench.cells.overrides import Changes
from bdbench.cells.suites import Suite, suite
from bdbench.contract.promises import found, judged
from bdbench.datasets import Source
from bdbench.datasets.registry import datasets as _datasets
from bdbench.defenses import Defense
from bdbench.defenses.registry import defenses as _defenses
from bdbench.machine.devices import device_of, precision_of
from bdbench.machine.terminal import Terminal
from bdbench.models import Classifier, Recipe
from bdbench.models.plugins.blame import blaming
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.plugins.errors import check as _require
from bdbench.models.plugins.registry import load_file
from bdbench.models.plugins.spec import Spec
from bdbench.models.registry import Model
from bdbench.models.registry import models as _models
from bdbench.records.files import path_of, read, read_all
from bdbench.records.record import Record
from bdbench.running.engines.options import Place
from bdbench.running.run import Options, execute, plan
from bdbench.running.worker import keep
from bdbench.storage.atomic import check_writable
from bdbench.storage.cache import Cache
from bdbench.storage.folders import cache_root, roots
from bdbench.tables.groups import seconds_own, seconds_total
from bdbench.tables.write import leaderboard, paper_table
from bdbench.trial.harness import Harness
from bdbench.trial.poisoned import PoisonedData

Folder = str | Path


def attack(name: str, /, **fields: Any) -> Attack:
    """The attack of this name. Raises `InvalidInput` for a wrong name, field or value."""
    return _attacks.build(Spec(name, fields))


def defense(name: str, /, **fields: Any) -> Defense:
    """The defense of this name, as `attack`."""
    return _defenses.build(Spec(name, fields))


def dataset(name: str, /, **fields: Any) -> Source:
    """The data set of this name, as `attack`. Nothing is read yet."""
    return _datasets.build(Spec(name, fields))


def model(name: str, /, **fields: Any) -> Model:
    """The model of this name, as `attack`. Its `build` makes networks."""
    return _models.build(Spec(name, fields))


@dataclass(frozen=True)
class CellRecord(Record):
    """The record of a cell with what it was made of, see `Record`."""

    _network: Classifier | None = field(default=None, repr=False, compare=False)
    _poisoned: PoisonedData | None = field(default=None, repr=False, compare=False)

    @property
    def network(self) -> Classifier:
        """The network that the defense returned. Raises `InvalidInput` for a record that was read
        from a file, which holds none."""
        _require(
            self._network is not None,
            f"cell {self.key} was read from its record, which holds no network; {self._again}",
        )
        assert self._network is not None
        return self._network

    @property
    def poisoned(self) -> PoisonedData:
        """The training set after the attack, who is poisoned, and the triggered test images. Raises
        `InvalidInput` as `network` does."""
        _require(
            self._poisoned is not None,
            f"cell {self.key} was read from its record, which holds no images; {self._again}",
        )
        assert self._poisoned is not None
        return self._poisoned

    @property
    def _again(self) -> str:
        local = self.provenance.get("code", {})
        given = [
            f"{axis}={text if axis in local else repr(text)}"
            for axis, text in self.cell.items()
            if axis != "seed"
        ]
        return f"bd.run_cell({', '.join(given)}, seed={self.cell['seed']}) makes it"


def run_cell(
    *,
    dataset: str | Source = "digits",
    model: str | Model = "wrn16_1",
    attack: str | Attack = "badnets",
    defense: str | Defense = "none",
    recipe: str | Recipe | None = None,
    epochs: int | None = None,
    seed: int = 0,
    train_images: int | None = None,
    device: str = "auto",
    precision: str | None = None,
    curves: bool = False,
    results: Folder | None = None,
    data: Folder | None = None,
) -> CellRecord:
    """Poison, train, defend and evaluate, in this process.

    recipe: how networks are trained; a spec leaves the rest to the data set
    epochs: length of the recipe
    results: folder in which the record is kept; a cell that has its record there is not run again
    data: folder of data sets; None for the usual ones

    Raises `InvalidInput` for what is not right, and whatever an attack or a defense raises.
    """
    changes = Changes(
        dataset=[dataset],
        model=[model],
        attack=[attack],
        defense=[defense],
        recipe=recipe if isinstance(recipe, str) else None,
        epochs=epochs,
        train_images=train_images,
        precision=precision,
    )
    place = device_of(device)
    chosen = _cell(changes, recipe, place, seed)
    folder = None if results is None else Path(results)
    if folder is not None:
        check_writable(folder)
    if folder is not None and path_of(folder, chosen.key).exists():
        kept = read(path_of(folder, chosen.key))
        if kept.status == "ok" and (kept.curves or not curves):
            return CellRecord(**vars(kept))
    check_network(chosen)
    searched = roots(None if data is None else Path(data))
    harness = Harness(Cache(cache_root()), searched, place, curves)
    done = harness.finish(chosen)
    if folder is not None:
        keep(folder, done.record, chosen)
    if done.failure is not None:
        raise done.failure
    harness.discard(chosen)
    return CellRecord(**vars(done.record), _network=done.network, _poisoned=done.poisoned)


def _cell(changes: Changes, recipe: str | Recipe | None, place: torch.device, seed: int) -> Cell:
    whole = isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0
    _require(whole, f"seed must be a whole number of at least 0, got {seed!r}")
    one = changes.applied_to(Suite("", ("digits",), seeds=1))
    source = _datasets.built(one.datasets[0])
    if isinstance(recipe, Recipe):
        precision = precision_of(changes.precision or recipe.precision, place)
        epochs = recipe.epochs if changes.epochs is None else changes.epochs
        how = replace(recipe, epochs=epochs, precision=precision)
    else:
        how = recipe_for(source, one.recipe, precision_of(one.precision, place))
    chosen = cell(source, one.models[0], one.attacks[0], one.defenses[0], how, seed)
    with blaming("the trigger of the attack"):
        check_trigger(chosen)
    return chosen


def run(
    name: str = "quick",
    *,
    datasets: Sequence[str | Source] = (),
    models: Sequence[str | Model] = (),
    attacks: Sequence[str | Attack] = (),
    defenses: Sequence[str | Defense] = (),
    seeds: int | None = None,
    recipe: str | None = None,
    epochs: int | None = None,
    train_images: int | None = None,
    loader: str | None = None,
    precision: str | None = None,
    graphs: bool = False,
    device: str = "auto",
    jobs: int | None = None,
    threads: int | None = None,
    in_process: bool = False,
    results: Folder | None = None,
    data: Folder | None = None,
    plugins: Sequence[Folder] = (),
    budget: float | None = None,
    limit: float | None = None,
    stale: bool = False,
    curves: bool = False,
    progress: bool = True,
) -> Results:
    """Run what is missing of a suite, as `bdbench run` does, whose options these are; each of the
    first four replaces an axis. Returns the records of the suite's cells.

    jobs: cells at once; None is one for each core or GPU
    threads: of each cell beside a processor; None is one
    in_process: run cells here, where a debugger sees them and they can touch one another. So do
        those of a plugin that a notebook or a script defines.
    progress: print what is done, with a bar on a terminal and in a notebook

    Raises `InvalidInput` for what is not right. A cell that fails stops no other: see
    `Results.failed`.
    """
    for path in plugins:
        load_file(Path(path))
    changes = Changes(
        dataset=datasets,
        model=models,
        attack=attacks,
        defense=defenses,
        seeds=seeds,
        recipe=recipe,
        epochs=epochs,
        train_images=train_images,
        loader=loader,
        precision=precision,
        graphs=graphs,
    )
    options = Options(
        device=device,
        results=None if results is None else Path(results),
        data=None if data is None else Path(data),
        plugin=[Path(path) for path in plugins],
        budget=budget,
        limit=limit,
        stale=stale,
        curves=curves,
    )
    place = Place(jobs=jobs, threads=threads, in_process=in_process)
    made = plan(name, changes.applied_to(suite(name)), place, options)
    execution = execute(made, Terminal(quiet=not progress))
    _require(not execution.refused, "; ".join(dict.fromkeys(execution.refused)))
    fresh = {record.key: record for record in execution.records}
    found, damaged = [], []
    for key in dict.fromkeys(each.key for each in made.cells):
        path = path_of(made.results, key)
        try:
            if key in fresh or path.exists():
                found.append(fresh[key] if key in fresh else read(path))
        except InvalidInput as error:
            damaged.append(str(error))
    return Results(made.results, tuple(found), tuple(damaged))


def load(folder: Folder) -> Results:
    """The records in `<folder>/records`. Raises `InvalidInput` where there is none."""
    records, damaged = read_all(Path(folder))
    place = Path(folder) / "records"
    _require(bool(records or damaged), f"no records in {place}; `bdbench run` makes them")
    _require(bool(records), f"all records in {place} are damaged; the first: {damaged[:1]}")
    return Results(Path(folder), tuple(records), tuple(damaged))


def poison(
    attack: str | Attack,
    *,
    dataset: str | Source = "digits",
    model: str | Model = "wrn16_1",
    recipe: str | Recipe | None = None,
    epochs: int | None = None,
    seed: int = 0,
    device: str = "auto",
    data: Folder | None = None,
) -> PoisonedData:
    """What an attack makes of a data set, the same as in a run with this seed. Model and recipe are
    for an attack that trains a network."""
    changes = Changes(
        dataset=[dataset],
        model=[model],
        attack=[attack],
        defense=["none"],
        recipe=recipe if isinstance(recipe, str) else None,
        epochs=epochs,
    )
    place = device_of(device)
    chosen = _cell(changes, recipe, place, seed)
    searched = roots(None if data is None else Path(data))
    return Harness(Cache(cache_root()), searched, place).poisoned(chosen)


class Promise(NamedTuple):
    """A promise of the contract, whether a plugin keeps it, and how it breaks it. One that means
    nothing while another is broken is not tested, and `kept` is None."""

    promise: str
    kept: bool | None
    why: str | None


def check(what: Folder) -> list[Promise]:
    """Test a plugin against the contract: a file that registers some, or a name. Raises
    `InvalidInput` where there is none."""
    plugins = found(str(what))
    return [
        Promise(f"{kind} {name}: {each.promise.sentence}", each.kept, each.why)
        for kind, name in plugins
        for each in judged(kind, name)
    ]


class _Markdown(Protocol):
    def markdown(self) -> str: ...

    def csv(self) -> str: ...


@dataclass(frozen=True)
class Table:
    """A table of records, which a notebook shows as one."""

    made: _Markdown

    def markdown(self) -> str:
        """With a legend."""
        return self.made.markdown()

    def csv(self) -> str:
        """In long form; shares in [0, 1]."""
        return self.made.csv()

    def frame(self) -> pd.DataFrame:
        """The same as `csv`."""
        return pd.read_csv(io.StringIO(self.csv()))

    def __str__(self) -> str:
        return self.markdown()

    def _repr_html_(self) -> str:
        from markdown_it import MarkdownIt

        reader = MarkdownIt("commonmark", {"html": False}).enable("table")
        html: str = reader.render(self.markdown())
        return html


@dataclass(frozen=True)
class Results:
    """Records of one folder.

    damaged: a line for each file that is no record
    """

    folder: Path
    records: tuple[Record, ...]
    damaged: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __repr__(self) -> str:
        return f"{len(self)} records in {self.folder}"

    @property
    def failed(self) -> list[Record]:
        """Records of cells that raised; `error` says what."""
        return [record for record in self.records if record.status == "failed"]

    def frame(self) -> pd.DataFrame:
        """A row for each record: axes, seed, metrics as shares in [0, 1], seconds and flags."""
        return pd.DataFrame([_row(record) for record in self.records])

    def leaderboard(self, sort: str = "", columns: Sequence[str] = ()) -> Table:
        """Defenses by attacks, best DER first.

        sort: title of another column to sort by, such as "badnets ASR"
        columns: more of each attack, of "floor", "R-Acc", "CA interval", "ASR interval", "TPR",
            "FPR" and "all"

        Raises `InvalidInput` for an unknown column and for records that do not belong together.
        """
        return Table(leaderboard(self.records, sort, columns))

    def paper_table(self, number: int) -> Table:
        """A table of the CBD paper, 1, 2, 3 or 5, with the printed numbers beside ours."""
        _require(number in (1, 2, 3, 5), f"table must be 1, 2, 3 or 5, got {number!r}")
        return Table(paper_table(number, self.records, self.folder))

    @cached_property
    def _board(self) -> Table:
        return self.leaderboard()

    def _repr_html_(self) -> str:
        return self._board._repr_html_()


def _row(record: Record) -> Mapping[str, Any]:
    metrics = ("clean_accuracy", "attack_success_rate", "robust_accuracy", "asr_floor")
    counts = {name: getattr(record, name) for name in metrics}
    return {
        "key": record.key,
        **{axis: record.labels[axis] for axis in ("dataset", "model", "attack", "defense")},
        "recipe": record.labels["recipe"],
        "seed": record.cell["seed"],
        "status": record.status,
        **{name: None if count is None else count.rate for name, count in counts.items()},
        "seconds": seconds_total(record),
        "seconds_own": seconds_own(record),
        "flags": " ".join(record.flags),
    }

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
from torch import Tensor, nn

from bdbench.attacks import Attack
from bdbench.attacks.registry import attacks as _attacks
from bdbench.cells import suite_file
from bdbench.cells.cell import Cell, cell, check_network, check_trigger
from bdbench.cells.grid import recipe_for
from bdbench.cells.overrides import SuiteOverrides
from bdbench.cells.suites import Suite
from bdbench.contract.promises import check_plugin, resolve
from bdbench.datasets import Source
from bdbench.datasets.registry import datasets as _datasets
from bdbench.defenses import Defense
from bdbench.defenses.registry import defenses as _defenses
from bdbench.machine.devices import device_of, precision_of
from bdbench.machine.terminal import Terminal
from bdbench.models import Classifier, Recipe
from bdbench.models.plugins.blame import blaming
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.plugins.errors import require as _require
from bdbench.models.plugins.registry import load_file
from bdbench.models.plugins.spec import Spec
from bdbench.models.registry import Model
from bdbench.models.registry import models as _models
from bdbench.records.beside import Known, Neighbour, join, neighbours
from bdbench.records.files import find, path_of, read, read_all
from bdbench.records.record import Record
from bdbench.records.rerun import call
from bdbench.running.engines.options import ExecutionOptions
from bdbench.running.run import RunOptions, execute, plan
from bdbench.running.worker import keep
from bdbench.storage.atomic import check_writable
from bdbench.storage.cache import Cache
from bdbench.storage.folders import cache_root, roots
from bdbench.storage.networks import Stored
from bdbench.storage.networks import read as _read_weights
from bdbench.tables import export
from bdbench.tables.write import leaderboard, paper_table
from bdbench.trial import networks as _networks
from bdbench.trial.harness import Harness
from bdbench.trial.poisoned import PoisonedData

Folder = str | Path
"""A folder or a file."""
Folders = Folder | Sequence[Folder]


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
    _results: Path | None = field(default=None, repr=False, compare=False)
    _poisoned: PoisonedData | None = field(default=None, repr=False, compare=False)

    @property
    def network(self) -> Classifier:
        """The network that the defense returned, in eval mode; for a record that was read from a
        file, the one that was saved beside it. Raises `InvalidInput` where none was."""
        if self._network is not None:
            return self._network
        stored = None if self._results is None else _networks.saved(self._results, self)
        _require(
            stored is not None,
            f"cell {self.key} was read from its record, which holds no network; {self._again}",
        )
        assert stored is not None
        return _networks.network(stored)

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
        return f"{call(self)} makes it"


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
    save: bool = False,
    results: Folder | None = None,
    data: Folder | None = None,
) -> CellRecord:
    """Poison, train, defend and evaluate, in this process.

    recipe: how networks are trained; a spec leaves the rest to the data set
    epochs: length of the recipe
    save: keep the network beside the record
    results: folder in which the record is kept; a cell that has its record there is not run again
    data: folder of data sets; None for the usual ones

    Raises `InvalidInput` for what is not right, and whatever an attack or a defense raises.
    """
    overrides = SuiteOverrides(
        dataset=[dataset],
        model=[model],
        attack=[attack],
        defense=[defense],
        epochs=epochs,
        train_images=train_images,
        precision=precision,
    )
    place = device_of(device)
    chosen = _cell(overrides, recipe, place, seed)
    searched = roots(None if data is None else Path(data))
    harness = Harness(Cache(cache_root()), searched, place, curves)
    return _finished(harness, chosen, None if results is None else Path(results), save)


def _finished(harness: Harness, chosen: Cell, folder: Path | None, save: bool) -> CellRecord:
    """What comes of a cell, or came of it where its record is kept. Raises what it raises."""
    _require(folder is not None or not save, "save needs a folder for the network: name results")
    if folder is not None:
        check_writable(folder)
    if folder is not None and path_of(folder, chosen.key).exists():
        kept = read(path_of(folder, chosen.key))
        there = not save or _networks.saved(folder, kept) is not None
        if kept.status == "ok" and (kept.curves or not harness.curves) and there:
            return CellRecord(**vars(kept), _results=folder)
    check_network(chosen)
    done = harness.finish(chosen)
    if folder is not None:
        if save and done.network is not None:
            _networks.keep(folder, chosen, done.network)
        keep(folder, done.record, chosen)
    if done.failure is not None:
        raise done.failure
    harness.discard(chosen)
    return CellRecord(**vars(done.record), _network=done.network, _poisoned=done.poisoned)


def evaluate(
    weights: Folder | Mapping[str, Tensor] | nn.Module,
    *,
    dataset: str | Source,
    attack: str | Attack,
    defense: str | Defense = "none",
    model: str | Model | None = None,
    recipe: str | Recipe | None = None,
    epochs: int | None = None,
    seed: int = 0,
    train_images: int | None = None,
    device: str = "auto",
    precision: str | None = "fp32",
    save: bool = False,
    results: Folder | None = None,
    data: Folder | None = None,
) -> CellRecord:
    """Evaluate a network of one's own, or a defense that starts from it, in this process.

    weights: a safetensors file, a state dict, or a module of which it is taken
    model: of which they are, with the normalisation that it expects; None for what a file says

    The others are those of `run_cell`, and so is what is raised; also `InvalidInput` for weights
    that are not of this model and data set, and a defense that starts from no network.
    """
    place, stored = device_of(device), _stored(weights)
    overrides = SuiteOverrides(
        dataset=[dataset],
        model=[_networks.brought(stored, model, _datasets.built(dataset))],
        attack=[attack],
        defense=[defense],
        epochs=epochs,
        train_images=train_images,
        precision=precision,
    )
    chosen = _cell(overrides, recipe, place, seed)
    _networks.check_starts([chosen])
    searched = roots(None if data is None else Path(data))
    harness = Harness(Cache(cache_root()), searched, place, brought=stored)
    return _finished(harness, chosen, None if results is None else Path(results), save)


def _stored(weights: Folder | Mapping[str, Tensor] | nn.Module) -> Stored:
    if isinstance(weights, str | Path):
        return _read_weights(Path(weights))
    state = weights.state_dict() if isinstance(weights, nn.Module) else dict(weights)
    known = all(isinstance(n, str) and isinstance(v, Tensor) for n, v in state.items())
    _require(known, "weights must be a file, a module, or a state dict of tensors by name")
    copies = {name: values.detach().cpu().clone() for name, values in state.items()}
    return Stored(copies, origin=f"the {type(weights).__name__}")


def _cell(
    overrides: SuiteOverrides, recipe: str | Recipe | None, place: torch.device, seed: int
) -> Cell:
    whole = isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0
    _require(whole, f"seed must be a whole number of at least 0, got {seed!r}")
    stated = replace(overrides, recipe=recipe if isinstance(recipe, str) else None)
    one = stated.applied_to(Suite("", ("digits",), seeds=1))
    source = _datasets.built(one.datasets[0])
    if isinstance(recipe, Recipe):
        precision = precision_of(overrides.precision or recipe.precision, place)
        epochs = recipe.epochs if overrides.epochs is None else overrides.epochs
        how = replace(recipe, epochs=epochs, precision=precision)
    else:
        how = recipe_for(source, one.recipe, precision_of(one.precision, place))
    chosen = cell(source, one.models[0], one.attacks[0], one.defenses[0], how, seed)
    with blaming("the trigger of the attack"):
        check_trigger(chosen)
    return chosen


def run(
    name: Folder = "quick",
    *,
    datasets: Sequence[str | Source] = (),
    models: Sequence[str | Model] = (),
    attacks: Sequence[str | Attack] = (),
    defenses: Sequence[str | Defense] = (),
    seeds: int | None = None,
    seed: int | Sequence[int] = (),
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
    against: Folders = (),
    data: Folder | None = None,
    plugins: Sequence[Folder] = (),
    budget: float | None = None,
    limit: float | None = None,
    stale: bool = False,
    curves: bool = False,
    save: bool = False,
    progress: bool = True,
) -> Results:
    """Run what is missing of a suite, as `bdbench run` does, whose options these are; each of the
    first four replaces an axis. Returns the records of the suite's cells.

    name: of a built-in suite, or a TOML file
    seeds, seed: how many, counted from 0, or exactly which
    against: folders of other records; a cell that has one there is not run, and the leaderboard
        shows the records of both sides
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
    chosen = suite_file.find(str(name))
    chosen.prepare()
    overrides = SuiteOverrides(
        dataset=datasets,
        model=models,
        attack=attacks,
        defense=defenses,
        seeds=seeds,
        seed=seed if isinstance(seed, Sequence) else (seed,),
        recipe=recipe,
        epochs=epochs,
        train_images=train_images,
        loader=loader,
        precision=precision,
        graphs=graphs,
    )
    options = RunOptions(
        device=device,
        results=None if results is None else Path(results),
        against=_paths(against),
        data=None if data is None else Path(data),
        plugin=[*map(Path, plugins), *chosen.plugins],
        budget=budget,
        limit=limit,
        stale=stale,
        curves=curves,
        save=save,
    )
    place = ExecutionOptions(jobs=jobs, threads=threads, in_process=in_process)
    made = plan(chosen.name, overrides.applied_to(chosen.suite), place, options)
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
    damaged += [line for other in made.beside for line in other.damaged]
    whole = _whole(found, made.results)
    return Results(made.results, whole, tuple(damaged), made.beside, tuple(made.asked))


def load(folder: Folder) -> Results:
    """The records in `<folder>/records`. Raises `InvalidInput` where there is none."""
    records, damaged = read_all(Path(folder))
    place = Path(folder) / "records"
    _require(bool(records or damaged), f"no records in {place}; `bdbench run` makes them")
    _require(bool(records), f"all records in {place} are damaged; the first: {damaged[:1]}")
    return Results(Path(folder), _whole(records, Path(folder)), tuple(damaged))


def _whole(records: Sequence[Record], folder: Path) -> tuple[CellRecord, ...]:
    """Records of a folder, with the networks that were saved beside them."""
    return tuple(CellRecord(**vars(record), _results=folder) for record in records)


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
    overrides = SuiteOverrides(
        dataset=[dataset],
        model=[model],
        attack=[attack],
        defense=["none"],
        epochs=epochs,
    )
    place = device_of(device)
    chosen = _cell(overrides, recipe, place, seed)
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
    plugins = resolve(str(what))
    return [
        Promise(f"{kind} {name}: {each.promise.sentence}", each.kept, each.why)
        for kind, name in plugins
        for each in check_plugin(kind, name)
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
    beside: other folders, whose records the leaderboard shows too
    asked: cells that were asked for, though the other folders may have their records
    """

    folder: Path
    records: tuple[Record, ...]
    damaged: tuple[str, ...] = ()
    beside: tuple[Neighbour, ...] = ()
    asked: tuple[Known, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __repr__(self) -> str:
        return f"{len(self)} records in {self.folder}"

    def network(self, key: str) -> Classifier:
        """The defended network of a cell that a run with --save kept, in eval mode, on the CPU.

        key: of the record, or its first digits

        Raises `InvalidInput` for no such record, and where its network was not saved or is damaged.
        """
        return _networks.kept(self.folder, read(find(str(key), self.folder)))

    @property
    def failed(self) -> list[Record]:
        """Records of cells that raised; `error` says what."""
        return [record for record in self.records if record.status == "failed"]

    def frame(self, epochs: bool = False) -> pd.DataFrame:
        """A row for each record: axes, seed, metrics as shares in [0, 1], seconds, flags and all
        else that `bdbench export` writes; or a row for each epoch of each curve."""
        return export.frame(self.records, epochs)

    def leaderboard(
        self, sort: str = "", columns: Sequence[str] = (), against: Folders = ()
    ) -> Table:
        """Defenses by attacks, best DER first.

        sort: title of another column to sort by, such as "badnets ASR"
        columns: more of each attack, of "floor", "R-Acc", "CA interval", "ASR interval", "TPR",
            "FPR" and "all"
        against: folders of other records, to stand beside; those of `beside` if not given

        Raises `InvalidInput` for an unknown column, for a folder without records and for records
        that do not belong together.
        """
        others = neighbours(_paths(against), self.folder) or self.beside
        records, origins = join(self.records, others, self.folder, self.asked)
        return Table(leaderboard(records, sort, columns, origins))

    def paper_table(self, number: int) -> Table:
        """A table of the CBD paper, 1, 2, 3 or 5, with the printed numbers beside ours."""
        _require(number in (1, 2, 3, 5), f"table must be 1, 2, 3 or 5, got {number!r}")
        return Table(paper_table(number, self.records, self.folder))

    @cached_property
    def _board(self) -> Table:
        return self.leaderboard()

    def _repr_html_(self) -> str:
        return self._board._repr_html_()


def _paths(folders: Folders) -> list[Path]:
    return [Path(each) for each in ([folders] if isinstance(folders, str | Path) else folders)]

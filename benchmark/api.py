"""The Python interface: `import bdbench as bd`.

Attacks, defenses, data sets and models are passed as specs, such as "cbd(t1=3)", or as objects,
which may be of classes that a notebook defines.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import pandas as pd
import torch
from torch import Tensor, nn

from bdbench.attacks import Attack
from bdbench.attacks.registry import attacks as _attacks
from bdbench.cells import suite_file
from bdbench.cells.cell import Cell, cell, check_network, check_trigger
from bdbench.cells.grid import recipe_for
from bdbench.cells.overrides import SuiteOverrides
from bdbench.cells.plugins import load_plugin
from bdbench.cells.suites import Suite, check_seeds
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
from bdbench.models.plugins.notices import notify
from bdbench.models.plugins.spec import Spec
from bdbench.models.registry import Model
from bdbench.models.registry import models as _models
from bdbench.records.beside import Neighbour, join, neighbours
from bdbench.records.claims import claimed
from bdbench.records.consistency import Known
from bdbench.records.files import check_folder, find, network_of, path_of, read, read_all
from bdbench.records.record import REACTIVATED, Record
from bdbench.records.rerun import call
from bdbench.running.engines.options import ExecutionOptions
from bdbench.running.plan import RunOptions, plan
from bdbench.running.run import execute
from bdbench.running.worker import check_images, keep, readable
from bdbench.storage.atomic import Unusable
from bdbench.storage.cache import Cache
from bdbench.storage.folders import cache_root, expanded, roots
from bdbench.storage.networks import Stored
from bdbench.storage.networks import read as _read_weights
from bdbench.tables import export
from bdbench.tables.write import leaderboard, paper_table
from bdbench.trial import networks as _networks
from bdbench.trial import provenance
from bdbench.trial.harness import Finished, Harness
from bdbench.trial.poisoned import PoisonedData

Folder = str | Path
"""A path of a folder or a file."""
Folders = Folder | Sequence[Folder]


def attack(name: str, /, **fields: Any) -> Attack:
    """Build an attack by name. Raises `InvalidInput` for an invalid name, field or value."""
    return _attacks.build(_spec("attack", name, fields))


def defense(name: str, /, **fields: Any) -> Defense:
    """Build a defense by name, as `attack` does."""
    return _defenses.build(_spec("defense", name, fields))


def dataset(name: str, /, **fields: Any) -> Source:
    """Build a data set by name, as `attack` does. It is not loaded yet."""
    return _datasets.build(_spec("dataset", name, fields))


def model(name: str, /, **fields: Any) -> Model:
    """Build a model by name, as `attack` does. Its `build` creates networks."""
    return _models.build(_spec("model", name, fields))


def _spec(kind: str, name: Any, fields: Mapping[str, Any]) -> Spec:
    _require(isinstance(name, str), f"the name of a plugin must be text, got {name!r}")
    if "(" in name:
        given = Spec.of(name).with_(**fields)
        written = ", ".join(f"{field}={value!r}" for field, value in given.fields.items())
        call = f"bd.{kind}({', '.join(filter(None, [repr(given.name), written]))})"
        raise InvalidInput(f"the fields of {name!r} must be keywords: write {call}")
    return Spec(name, fields)


@dataclass(frozen=True, repr=False)
class CellRecord(Record):
    """The record of a cell with its network and its poisoned data, see `Record`."""

    _network: Classifier | None = field(default=None, repr=False, compare=False)
    _results: Path | None = field(default=None, repr=False, compare=False)
    _poisoned: PoisonedData | None = field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        names = [str(self.labels[axis]) for axis in ("dataset", "model", "attack", "defense")]
        shares = {"CA": self.clean_accuracy, "ASR": self.attack_success_rate}
        numbers = [f"{name} {100 * n.rate:.1f} %" for name, n in shares.items() if n is not None]
        found = ", ".join(numbers) if self.error is None else f"failed, {self.error.type}"
        return f"<{' · '.join(names)} · seed {self.cell.seed}: {found}; cell {self.key}>"

    @property
    def network(self) -> Classifier:
        """The network that the defense returned, in eval mode.

        For a record that was read from a file, it is the network saved with it. Raises
        `InvalidInput` if there is none.
        """
        if self._network is not None:
            return self._network
        stored = None if self._results is None else _networks.saved(self._results, self)
        _require(
            stored is not None,
            f"the record of cell {self.key} was read from a file without a network; {self._again}",
        )
        assert stored is not None
        return _networks.network(stored)

    @property
    def poisoned(self) -> PoisonedData:
        """The poisoned training set, its poison mask and the triggered test images.

        Raises `InvalidInput` for a record that was read from a file.
        """
        _require(
            self._poisoned is not None,
            f"the record of cell {self.key} was read from a file without images; {self._again}",
        )
        assert self._poisoned is not None
        return self._poisoned

    @property
    def _again(self) -> str:
        return f"create it with {call(self)}"


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
    reactivate: bool = False,
    results: Folder | None = None,
    data: Folder | None = None,
) -> CellRecord:
    """Run one cell in this process: poison, train, defend and evaluate.

    recipe: training settings; fields that a spec omits have the data set's defaults, while a
        `Recipe` is taken as it is (GTSRB trains at 0.01 and is not mirrored by default)
    epochs: number of epochs, in place of the recipe's
    train_images: size of the training set; None for all images
    precision: fp32, as in the built-in suites, unless this or a `Recipe` says otherwise; auto is
        bf16 on a CPU with bf16 instructions, and fp32 elsewhere
    curves: evaluate at the ends of up to 20 epochs
    save: store the network with the record
    reactivate: also measure P-ASR: whether the backdoor comes back after fine-tuning
    results: folder for the record; a cell with a record there is not run again
    data: folder of data sets; None for the default ones

    Raises `InvalidInput` for an invalid argument, and what the attack or the defense raises.
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
    how = _options(device, results, data, curves=curves, save=save, reactivate=reactivate)
    target = device_of(how.device)
    chosen = _cell(overrides, recipe, target, seed)
    harness = Harness(Cache(cache_root()), roots(how.data), target, curves, reactivate=reactivate)
    return _finished(harness, chosen, how.results, save)


def _finished(harness: Harness, chosen: Cell, folder: Path | None, save: bool) -> CellRecord:
    """Run a cell, or read its record from the folder. Raises what the cell raises."""
    _require(
        folder is not None or not save, "save=True needs a folder for the network; pass results"
    )
    if folder is None:
        check_network(chosen)
        return _fresh(harness, chosen, lambda done: None)
    check_folder(folder, save)
    with claimed(folder, chosen.key) as mine:
        if (stored := readable(folder, chosen.key)) is not None:
            has_network = not save or _networks.saved(folder, stored) is not None
            complete = stored.holds(curves=harness.curves, reactivate=harness.reactivate)
            if stored.status == "ok" and complete and has_network:
                if parts := provenance.changed(stored, chosen):
                    notify(
                        f"the record {stored.key} in {folder} is from other code "
                        f"({', '.join(parts)}); remove it to run its cell again",
                        stacklevel=3,
                    )
                return CellRecord(**vars(stored), _results=folder)
            # What the record holds, the one that replaces it shall hold too.
            harness.curves |= bool(stored.curves)
            harness.reactivate |= stored.count(REACTIVATED) is not None
            save |= network_of(folder, stored.key).exists()
        _require(
            mine, f"another run is working on cell {chosen.key} of {folder}: wait until it ends"
        )
        if stored is not None and stored.status == "ok":
            check_images(harness, chosen, stored.provenance.data_sha256, folder)
        check_network(chosen)

        def store(done: Finished) -> None:
            if done.failure is not None:
                # Without a record, too, the exception tells the failure.
                with suppress(Unusable):
                    keep(folder, done.record, chosen)
                return
            if save and done.network is not None:
                _networks.keep(folder, chosen, done.network)
            keep(folder, done.record, chosen)

        return _fresh(harness, chosen, store)


def _fresh(harness: Harness, chosen: Cell, store: Callable[[Finished], None]) -> CellRecord:
    """Run a cell, and `store` what comes of it. Raises what the cell raises."""
    done = harness.finish(chosen)
    store(done)
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
    precision: str | None = None,
    save: bool = False,
    reactivate: bool = False,
    results: Folder | None = None,
    data: Folder | None = None,
) -> CellRecord:
    """Evaluate your own network, or a defense that starts from it, in this process.

    weights: a safetensors file, a state dict or a module
    model: architecture of the network, with the normalisation it expects; None to read it from the
        file

    The other arguments and errors are those of `run_cell`. Also raises `InvalidInput` for weights
    that do not fit the model and the data set, and for a defense that cannot start from a network.
    """
    how = _options(device, results, data, save=save, reactivate=reactivate)
    target, stored = device_of(how.device), _stored(weights)
    overrides = SuiteOverrides(
        dataset=[dataset],
        model=[_networks.given_model(stored, model, _datasets.built(dataset))],
        attack=[attack],
        defense=[defense],
        epochs=epochs,
        train_images=train_images,
        precision=precision,
    )
    chosen = _cell(overrides, recipe, target, seed)
    _networks.check_starts([chosen])
    harness = Harness(
        Cache(cache_root()), roots(how.data), target, given=stored, reactivate=reactivate
    )
    return _finished(harness, chosen, how.results, save)


def _stored(weights: Folder | Mapping[str, Tensor] | nn.Module) -> Stored:
    if isinstance(weights, str | Path):
        return _read_weights(_path(weights))
    state: Any = weights.state_dict() if isinstance(weights, nn.Module) else weights
    valid = isinstance(state, Mapping) and all(
        isinstance(n, str) and isinstance(v, Tensor) for n, v in state.items()
    )
    _require(valid, "weights must be a file, a module or a state dict of tensors by name")
    copies = {name: values.detach().cpu().clone() for name, values in state.items()}
    return Stored(copies, origin=f"the {type(weights).__name__}")


def _cell(
    overrides: SuiteOverrides, recipe: str | Recipe | None, target: torch.device, seed: int
) -> Cell:
    """The only cell of a suite with these overrides."""
    check_seeds([seed])
    given = replace(overrides, recipe=None if isinstance(recipe, Recipe) else recipe)
    suite = given.applied_to(Suite("", ("digits",), seeds=1))
    source = _datasets.built(suite.datasets[0])
    if isinstance(recipe, Recipe):
        precision = precision_of(overrides.precision or recipe.precision, target)
        epochs = recipe.epochs if overrides.epochs is None else overrides.epochs
        complete = replace(recipe, epochs=epochs, precision=precision)
    else:
        complete = recipe_for(source, suite.recipe, precision_of(suite.precision, target))
    chosen = cell(source, suite.models[0], suite.attacks[0], suite.defenses[0], complete, seed)
    with blaming("the trigger of the attack"):
        check_trigger(chosen)
    return chosen


def run(
    name: Folder = "quick",
    *,
    datasets: str | Source | Sequence[str | Source] = (),
    models: str | Model | Sequence[str | Model] = (),
    attacks: str | Attack | Sequence[str | Attack] = (),
    defenses: str | Defense | Sequence[str | Defense] = (),
    seeds: int | None = None,
    seed: int | Sequence[int] | None = None,
    recipe: str | None = None,
    epochs: int | None = None,
    train_images: int | None = None,
    loader: str | None = None,
    precision: str | None = None,
    graphs: bool = False,
    device: str = "auto",
    jobs: int | Literal["auto"] | None = None,
    threads: int | None = None,
    in_process: bool = False,
    results: Folder | None = None,
    against: Folders = (),
    data: Folder | None = None,
    plugins: Folders = (),
    budget: float | None = None,
    limit: float | None = None,
    stale: bool = False,
    curves: bool = False,
    save: bool = False,
    reactivate: bool = False,
    progress: bool = True,
) -> Results:
    """Run the cells of a suite that have no record yet, and return the records of all its cells.

    The arguments are the options of `bdbench run`; `datasets`, `models`, `attacks` and `defenses`
    each replace an axis of the suite. Each of these, and `plugins`, is a list or one of its values.

    name: name of a built-in suite, or path of a TOML file
    seeds, seed: number of seeds, counted from 0, or the seeds themselves
    against: folders of other records; a cell with a record there is not run, and the leaderboard
        shows the records of all folders
    jobs: cells that run at the same time; None for one per core or GPU
    threads: threads per cell on a CPU; None for one
    in_process: run the cells in this process, without isolation, for example to debug them. Cells
        of a plugin that a notebook or script defines always run in this process.
    progress: print progress, with a bar on a terminal and in a notebook

    Raises `InvalidInput` for an invalid argument. A failed cell does not stop the others, see
    `Results.failed`.
    """
    for path in _paths(plugins):
        load_plugin(path)
    chosen = suite_file.find(str(_path(name)))
    chosen.prepare()
    overrides = SuiteOverrides(
        dataset=_listed(datasets),
        model=_listed(models),
        attack=_listed(attacks),
        defense=_listed(defenses),
        seeds=seeds,
        seed=() if seed is None else _listed(seed),
        recipe=recipe,
        epochs=epochs,
        train_images=train_images,
        loader=loader,
        precision=precision,
        graphs=graphs,
    )
    _require(seed is None or bool(overrides.seed), "seed has no seed in it: leave it out")
    options = _options(
        device,
        results,
        data,
        against=_paths(against),
        plugin=[*_paths(plugins), *chosen.plugins],
        budget=budget,
        limit=limit,
        stale=stale,
        curves=curves,
        save=save,
        reactivate=reactivate,
    )
    execution_options = ExecutionOptions(
        jobs=None if jobs == "auto" else jobs, threads=threads, in_process=in_process
    )
    work = plan(chosen.name, overrides.applied_to(chosen.suite), execution_options, options)
    execution = execute(work, Terminal(quiet=not progress))
    _require(not execution.refused, "; ".join(dict.fromkeys(execution.refused)))
    fresh = {record.key: record for record in execution.records}
    found, damaged = [], []
    for key in dict.fromkeys(each.key for each in work.cells):
        path = path_of(work.results, key)
        try:
            if key in fresh or path.exists():
                found.append(fresh[key] if key in fresh else read(path))
        except InvalidInput as error:
            damaged.append(str(error))
    damaged += [line for other in work.beside for line in other.damaged]
    records = _with_networks(found, work.results)
    return Results(work.results, records, tuple(damaged), work.beside, tuple(work.asked))


def load(folder: Folder) -> Results:
    """Load the records in `<folder>/records`. Raises `InvalidInput` if there are none."""
    place = _path(folder) / "records"
    records, damaged = read_all(place.parent)
    _require(bool(records or damaged), f"no records in {place}; create some with `bdbench run`")
    _require(bool(records), f"all records in {place} are damaged: {'; '.join(damaged[:1])}")
    return Results(place.parent, _with_networks(records, place.parent), tuple(damaged))


def _options(device: Any, results: Folder | None, data: Folder | None, **others: Any) -> RunOptions:
    """The options of a call. Raises `InvalidInput` for a value of the wrong type."""
    return RunOptions(
        device=str(device),
        results=None if results is None else _path(results),
        data=None if data is None else _path(data),
        **others,
    )


def _with_networks(records: Sequence[Record], folder: Path) -> tuple[CellRecord, ...]:
    """Records of a folder with access to the networks that are stored there."""
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
    precision: str | None = None,
    data: Folder | None = None,
) -> PoisonedData:
    """Poison a data set, as in a run with this seed.

    model, recipe, epochs, precision: for an attack that trains a network, see `run_cell`

    Raises `InvalidInput` for an invalid argument, and what the attack raises.
    """
    overrides = SuiteOverrides(
        dataset=[dataset],
        model=[model],
        attack=[attack],
        defense=["none"],
        epochs=epochs,
        precision=precision,
    )
    how = _options(device, None, data)
    target = device_of(how.device)
    chosen = _cell(overrides, recipe, target, seed)
    if chosen.attack.trains:
        check_network(chosen)
    return Harness(Cache(cache_root()), roots(how.data), target).poisoned(chosen)


class Promise(NamedTuple):
    """A promise of the plugin contract.

    kept: whether the plugin keeps it; None if it was not tested because of another broken promise
    why: how the plugin breaks it
    """

    promise: str
    kept: bool | None
    why: str | None


def check(what: Folder) -> list[Promise]:
    """Test plugins against the contract.

    what: a plugin file, or the name or spec of a plugin

    Raises `InvalidInput` for an unknown plugin.
    """
    _require(
        isinstance(what, str | Path),
        f"check takes a plugin file, or the name or spec of a plugin, got {what!r}: register its "
        "class with @register('name'), and pass that name",
    )
    plugins = resolve(os.path.expanduser(what))
    return [
        Promise(f"{kind} {name}: {each.promise.sentence}", each.kept, each.why)
        for kind, name in plugins
        for each in check_plugin(kind, name)
    ]


class _Markdown(Protocol):
    def markdown(self) -> str: ...

    def csv(self) -> str: ...


@dataclass(frozen=True, repr=False)
class Table:
    """A table made from records, which a notebook displays as a table."""

    table: _Markdown

    def markdown(self) -> str:
        """The table in Markdown, with a legend."""
        return self.table.markdown()

    def csv(self) -> str:
        """The table as CSV in long form; shares in [0, 1]."""
        return self.table.csv()

    def frame(self) -> pd.DataFrame:
        """The CSV as a DataFrame."""
        # A plugin may be called null or nan: only an empty field has no value.
        return pd.read_csv(io.StringIO(self.csv()), keep_default_na=False, na_values=[""])

    def __repr__(self) -> str:
        return self.markdown()

    def _repr_html_(self) -> str:
        from markdown_it import MarkdownIt

        reader = MarkdownIt("commonmark", {"html": False}).enable("table")
        html: str = reader.render(self.markdown())
        return html


@dataclass(frozen=True)
class Results:
    """The records of one results folder.

    damaged: one line per damaged record
    beside: other folders whose records the leaderboard shows too
    asked: the requested cells, whose records may be in the other folders
    """

    folder: Path
    records: tuple[CellRecord, ...]
    damaged: tuple[str, ...] = ()
    beside: tuple[Neighbour, ...] = ()
    asked: tuple[Known, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[CellRecord]:
        return iter(self.records)

    def __repr__(self) -> str:
        return f"{len(self)} records in {self.folder}"

    def network(self, key: str) -> Classifier:
        """The defended network of a cell, stored by a run with --save, in eval mode on the CPU.

        key: the key of the record or its first digits

        Raises `InvalidInput` for an unknown record, and if its network is not stored or is damaged.
        """
        return _networks.kept(self.folder, read(find(str(key), self.folder)))

    @property
    def failed(self) -> list[CellRecord]:
        """The records of failed cells; `error` has the exception."""
        return [record for record in self.records if record.status == "failed"]

    def frame(self, epochs: bool = False) -> pd.DataFrame:
        """One row per record, as `bdbench export` writes it: axes, seed, metrics as shares in
        [0, 1], seconds, flags and more.

        epochs: one row per epoch of each curve instead
        """
        return export.frame(self.records, epochs)

    def leaderboard(
        self, sort: str = "", columns: str | Sequence[str] = (), against: Folders = ()
    ) -> Table:
        """Defenses by attacks, highest DER first.

        sort: title of another column to sort by, such as "badnets ASR"
        columns: further columns per attack: "floor", "R-Acc", "CA interval", "ASR interval", "TPR",
            "FPR", "AUROC" or "all"
        against: folders of other records to show too; those of `beside` if empty

        Raises `InvalidInput` for an unknown column, for a folder without records and for records
        that do not belong in one table.
        """
        others = neighbours(_paths(against), self.folder) or self.beside
        records, origins = join(self.records, others, self.folder, self.asked)
        return Table(leaderboard(records, sort, _listed(columns), origins))

    def paper_table(self, number: int) -> Table:
        """Table 1, 2, 3 or 5 of the CBD paper, with the printed numbers beside ours.

        Raises `InvalidInput` for another number, and if no record belongs in the table.
        """
        known = type(number) is int and number in (1, 2, 3, 5)
        _require(known, f"table must be 1, 2, 3 or 5, got {number!r}")
        return Table(paper_table(number, self.records, self.folder))

    @cached_property
    def _board(self) -> Table:
        return self.leaderboard()

    def _repr_html_(self) -> str:
        return self._board._repr_html_()


def _path(folder: Folder) -> Path:
    valid = isinstance(folder, str | os.PathLike)
    _require(valid, f"a name or path must be text or a Path, got {folder!r}")
    return expanded(Path(folder))


def _paths(folders: Folders) -> list[Path]:
    return [_path(each) for each in _listed(folders)]


def _listed(given: Any) -> list[Any]:
    """A list of values; one value, which may be a text, is a list of it alone."""
    return [given] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)

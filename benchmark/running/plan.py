"""What a run of a suite would do: which cells are missing, what they cost and where they run."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch

from bdbench.cells import grid
from bdbench.cells.cell import REGISTRIES, Cell, factories
from bdbench.cells.cost import controls
from bdbench.cells.suites import Suite
from bdbench.machine.devices import precision_of
from bdbench.machine.memory import processes_that_fit
from bdbench.machine.surroundings import FOLDER_REMOVED, surroundings_kept, working_folder
from bdbench.machine.system import device_name
from bdbench.machine.threads import cores
from bdbench.models.networks.given import given
from bdbench.models.plugins.blame import blaming
from bdbench.models.plugins.errors import InvalidInput, of_types, require
from bdbench.models.plugins.files import is_found_by_workers
from bdbench.records.beside import Neighbour, join, neighbours, same
from bdbench.records.consistency import Known, refuse_versions
from bdbench.records.files import PUBLISHED, read_all
from bdbench.records.record import Record
from bdbench.running.cached_work import cached_work
from bdbench.running.engines.fresh import call_in_process
from bdbench.running.engines.options import ExecutionOptions
from bdbench.running.names import Names
from bdbench.running.plugin_sources import sources_of
from bdbench.running.probing import Asking
from bdbench.running.progress import duration
from bdbench.running.speed import Speed
from bdbench.running.states import CellState, Kind, state_of
from bdbench.running.worker import Job, setting_of
from bdbench.storage.cache import Cache
from bdbench.storage.folders import cache_root, roots
from bdbench.trial.networks import NEEDS_FILE, check_starts

LONGEST = 1e9
"""Seconds, about thirty years: a system timer can be set to this."""


@dataclass(frozen=True)
class RunOptions:
    """What a run does, beside the cells. Raises `InvalidInput` for a value of another type.

    device: auto, cpu, cuda or cuda:1
    results: folder of the records, None for the one with the name of the suite
    against: folders of other records; a cell that has a record there does not run
    data: folder of data sets, None for the usual ones
    plugin: files that workers must load
    budget: seconds; no cell starts that would not fit
    limit: seconds that one cell may take
    stale: also run cells whose code has changed
    curves: evaluate at the ends of up to 20 epochs
    save: store the network of every cell; a cell with a record but no network runs again
    reactivate: measure whether the backdoor comes back; a cell whose record does not say it runs
        again
    network: file of the network that all defenses start from, for cells of the model `weights`
    """

    device: str = "auto"
    results: Path | None = None
    against: Sequence[Path] = ()
    data: Path | None = None
    plugin: Sequence[Path] = ()
    budget: float | None = None
    limit: float | None = None
    stale: bool = False
    curves: bool = False
    save: bool = False
    reactivate: bool = False
    network: Path | None = None

    def __post_init__(self) -> None:
        of_types(self)


@dataclass(frozen=True)
class Plan:
    """What a run of a suite would do.

    devices: cells are spread over them
    results: folder of the records
    beside: other folders of records
    states: the cells of the suite, and which of them have a record
    note: what a reader should know of the choice of cells; empty for nothing
    """

    name: str
    suite: Suite
    execution: ExecutionOptions
    options: RunOptions
    devices: tuple[torch.device, ...]
    precision: str
    results: Path
    beside: tuple[Neighbour, ...]
    states: Mapping[Cell, CellState]
    note: str = ""

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """All cells of the suite."""
        return tuple(self.states)

    @cached_property
    def missing(self) -> tuple[Cell, ...]:
        """The cells to run."""
        return tuple(cell for cell, state in self.states.items() if state.runs)

    @cached_property
    def there(self) -> dict[Cell, Path]:
        """The cells whose record is in another folder, and that folder."""
        return {
            cell: state.folder
            for cell, state in self.states.items()
            if state.folder is not None and state.folder != self.results and not state.runs
        }

    def count(self, kind: Kind) -> int:
        """The number of cells in a state."""
        return sum(state.kind == kind for state in self.states.values())

    @cached_property
    def speed(self) -> Speed:
        """The speed of this machine. It trains each network for a few steps at the first use."""
        cache, curves = Cache(self.job.cache), self.options.curves
        reactivate, timed = self.options.reactivate, self.suite.timed
        others = controls(self.missing) if reactivate else ()
        here = self.device, self.threads
        done = cached_work(self.missing, cache, *here, curves, others, timed)
        return Speed(self.device, self.threads, done, curves, self.asking.speed, reactivate)

    @property
    def asking(self) -> Asking:
        """Calls of plugins before the run."""
        return Asking(self.job, None if self.execution.in_process else call_in_process)

    @property
    def device(self) -> torch.device:
        """The first of `devices`; the others are alike."""
        return self.devices[0]

    @property
    def threads(self) -> int:
        """Threads of each cell; the same whatever else is missing."""
        return self.execution.threads_of(self.device, self.suite.timed)

    @cached_property
    def at_once(self) -> int:
        """Cells that run at the same time: `--jobs`, or one per core or GPU but no more than fit
        into the free memory, see `processes_that_fit`."""
        most = self.execution.at_once(len(self.missing), self.devices, self.suite.timed)
        if self.execution.jobs is not None or not self.execution.is_here:
            return most
        return min(most, processes_that_fit())

    @cached_property
    def expected(self) -> float | None:
        """Seconds of the run; None if they are not known, see `_seconds`. Cells at the same time
        take at least as long as the longest of them."""
        seconds = self._seconds(self.missing)
        if seconds is None or self.at_once == 1:
            return seconds
        longest = max(self.speed.seconds([cell]) for cell in self.missing)
        return max(seconds / self.at_once, longest)

    def _seconds(self, cells: Sequence[Cell]) -> float | None:
        """Of cells one after the other; None on a cluster, whose machines are not known here, and
        where the speed of this one is not."""
        seconds = self.speed.seconds(cells) if self.execution.is_here else math.nan
        return None if math.isnan(seconds) else seconds

    @cached_property
    def job(self) -> Job:
        """What workers need beside their cells."""
        plugins = tuple(path.absolute() for path in self.options.plugin)
        return Job(
            results=self.results.absolute(),
            cache=cache_root().absolute(),
            roots=tuple(root.absolute() for root in roots(self.options.data)),
            device=str(self.device),
            plugins=plugins,
            sources=sources_of(plugins),
            curves=self.options.curves,
            save=self.options.save,
            reactivate=self.options.reactivate,
            network=self.options.network and self.options.network.absolute(),
            limit=self.options.limit,
            timed=self.suite.timed,
            images=self._images,
            threads=self.threads,
            family=os.getpid() if self.execution.is_here else None,
        )

    @cached_property
    def _own(self) -> list[Record]:
        """The records in the folder of the run."""
        return read_all(self.results)[0]

    @cached_property
    def _images(self) -> dict[str, tuple[str, Path | None]]:
        """By setting, see `setting_of`, the hash of the images of the records in the folder, or
        else of those beside it that share a table with the cells, and then their folder."""
        if not self.missing:
            return {}
        shown, origins = join((), self.beside, self.results, self.asked)
        every = [
            *((each, origins.of(each)) for each in shown),
            *((each, None) for each in self._own),
        ]
        return {
            setting_of(record.cell): (record.provenance.data_sha256, folder)
            for record, folder in every
            if record.status == "ok" and record.provenance.data_sha256
        }

    def lines(self) -> Iterator[str]:
        """What is the same for all cells, one for each cell, and the sum with its time."""
        missing, names = set(self.missing), Names(self.cells)
        yield from filter(None, [self.note])
        yield from names.common
        for cell in self.cells:
            cost = f"has its record in {self.there[cell]}" if cell in self.there else ""
            cost = cost or "has its record"
            cost += ", from other code" * (self.states[cell].kind == "outdated")
            if cell in missing:
                seconds = self._seconds([cell])
                cost = "to be run" if seconds is None else f"about {duration(seconds)}"
            yield f"{cell.key}  {' · '.join(names.of(cell))}: {cost}"
        yield f"{self._count}{self._about}"
        yield from self.damaged()
        yield from self.repeats()
        yield from self.outdated()
        yield from self.unknown()
        yield from self.absent()
        yield from self.surroundings()

    def damaged(self) -> Iterator[str]:
        """Which records a run replaces because they cannot be used."""
        for state in self.states.values():
            if state.damaged and state.runs:
                yield (
                    f"warning: {state.damaged}; its cell runs again and replaces it, unless you "
                    "restore the file from a copy"
                )

    def repeats(self) -> Iterator[str]:
        """Why cells with a record run again."""
        reasons: dict[Kind, tuple[str, str]] = {
            "unreactivated": ("P-ASR", "--reactivate"),
            "unsaved": ("saved network", "--save"),
        }
        for kind, (lacking, option) in reasons.items():
            if count := self.count(kind):
                records = f"{count} record{'s have' if count > 1 else ' has'}"
                yield f"{records} no {lacking}, so {option} runs the cells again"

    def outdated(self) -> Iterator[str]:
        """That other code made some of the records, which share a table with those of this run."""
        if count := self.count("outdated"):
            old = [state for state in self.states.values() if state.kind == "outdated"]
            parts = sorted({part for state in old for part in state.other_code})
            records = f"{count} record{'s are' if count > 1 else ' is'}"
            yield (
                f"{records} from other code ({', '.join(parts)}): --stale runs the cells again, "
                "--results DIR keeps these records apart"
            )

    def unknown(self) -> Iterator[str]:
        """Why the work of cells is not known."""
        for why in dict.fromkeys(why for cell in self.missing for why in cell.declared.unknown):
            yield f"warning: {why}; the expected time is a guess"

    def absent(self) -> Iterator[str]:
        """Which data sets a run on this machine would not find, and what to do."""
        searched = roots(self.options.data)
        sources = {cell.dataset.name: cell.dataset for cell in self.missing}
        for source in sources.values() if self.execution.is_here else ():
            try:
                with blaming("the data set"):
                    found = source.locate(searched)
                problem = "" if found else f"was not found; {source.advice}"
            except InvalidInput as error:
                problem = f"cannot be used: {error}"
            if problem:
                yield f"warning: data set {source.name} {problem}"

    @property
    def asked(self) -> list[Known]:
        """The cells in the form that `join` takes."""
        return [(cell.identity, cell.versions) for cell in self.cells]

    def check_table(self) -> None:
        """Raises `InvalidInput` if what this run makes could not share a table with the records
        that its folder has."""
        if self.missing:
            refuse_versions(self._own, self.asked, self.results)

    def surroundings(self) -> Iterator[str]:
        """Lines on the other folders of records, for a reader of the common table."""
        usual = Path("results") / self.name
        if not self.beside:
            if self.options.results is None and self.results != usual:
                yield f"the records in {usual} are published, so new ones go to {self.results}"
            return
        for other in self.beside:
            count = list(self.there.values()).count(other.folder)
            yield f"{count} of {len(self.cells)} cells have their record in {other.folder}"
        yield f"new records go to {self.results}"
        yield from join((), self.beside, self.results, self.asked)[1].remarks

    @property
    def headline(self) -> str:
        """What runs, where and how."""
        if not self.execution.is_here:
            return f"{self.name}: {self._count}"
        where = f" on {device_name(self.device)} in {self.precision}"
        how = f", {self.at_once} at once" if self.at_once > 1 else ""
        if self.execution.in_process:
            how += ", in this process"
        elif self.device.type == "cpu" and self.at_once == self.threads == 1 < cores():
            how += f" (--threads {cores()} is faster for one cell)"
        return f"{self.name}: {self._count}{self._about}{where}{how}"

    @property
    def nothing_to_do(self) -> str:
        """The line for a run without missing cells."""
        folders = [self.results, *(other.folder for other in self.beside)]
        count = len(self.cells)
        have = "the only cell has its record" if count == 1 else f"all {count} cells have records"
        return f"{self.name}: {have} in {' or '.join(map(str, folders))}"

    @property
    def _count(self) -> str:
        return f"{len(self.missing)} of {len(self.cells)} cells to run"

    @property
    def _about(self) -> str:
        return "" if self.expected is None else f", about {duration(self.expected)}"


def plan(
    name: str, suite: Suite, execution: ExecutionOptions, options: RunOptions, note: str = ""
) -> Plan:
    """Compare a suite with the records on disk; trains and writes nothing. For `note` see `Plan`.

    Raises `InvalidInput` for a suite or options that cannot be run.
    """
    require(working_folder() is not None, FOLDER_REMOVED)
    _check_options(name, suite, execution, options)
    devices = execution.devices(options.device)
    precision = precision_of(suite.precision, devices[0])
    with surroundings_kept(), blaming("a plugin"):
        cells = tuple(grid.cells(suite, precision))
    _check_names(cells)
    execution = _with_local_plugins(execution, cells)
    if not execution.in_process:
        _check_found(cells, options.plugin)
    _check_networks(cells, options.network)
    folder = _folder(name, options)
    beside = neighbours(options.against, folder)
    states = _states(cells, [folder, *(other.folder for other in beside)], options)
    planned = Plan(
        name, suite, execution, options, devices, precision, folder, beside, states, note
    )
    planned.asking.triggers(cells)
    planned.asking.networks(planned.missing)
    return planned


def _check_options(
    name: str, suite: Suite, execution: ExecutionOptions, options: RunOptions
) -> None:
    """Raises `InvalidInput` for options that contradict each other or the suite."""
    require(execution.is_here or options.budget is None, "--budget is for --engine local")
    require(
        not suite.timed or (execution.is_here and execution.jobs in (None, 1)),
        f"{name} measures seconds, so its cells run one after the other on this machine: leave out "
        "--jobs and --engine",
    )
    limit, budget = options.limit, options.budget
    require(
        limit is None or 0 < limit <= LONGEST,
        f"--limit must be above 0 and at most {LONGEST:,.0f} seconds, got {limit}",
    )
    require(
        budget is None or 0 <= budget <= LONGEST,
        f"--budget must be from 0 to {LONGEST:,.0f} seconds, got {budget}",
    )
    require(
        not options.save or execution.engine != "ray",
        "--save is for --engine local and slurm: nodes of Ray need not share a folder",
    )


def _check_names(cells: Sequence[Cell]) -> None:
    """Raises `InvalidInput` where plugins with one spec differ in their files: no table can tell
    their records apart."""
    for axis in REGISTRIES:
        known: dict[str, Cell] = {}
        for cell in (each for each in cells if axis not in each.local):
            first = known.setdefault(cell.specs[axis], cell)
            require(
                first.versions[axis] == cell.versions[axis],
                f"{first.located[axis]} and {cell.located[axis]} have the same name and other "
                "content, so no table could tell them apart: rename one of them, or run each into "
                "a folder of its own with --results",
            )


def _with_local_plugins(execution: ExecutionOptions, cells: Sequence[Cell]) -> ExecutionOptions:
    """In-process, if a plugin is defined in a notebook or a script, which workers cannot import.
    Raises `InvalidInput` if the options ask for workers."""
    local = {axis: cell.labels[axis] for cell in cells for axis in cell.local}
    if not local:
        return execution
    axis, label = next(iter(local.items()))
    require(
        execution.is_here and execution.jobs is None,
        f"{axis} {label} is defined in a notebook or a script, which workers cannot import: leave "
        "out jobs and engine, or move it to a file and name that as a plugin",
    )
    return replace(execution, in_process=True)


def _check_found(cells: Sequence[Cell], files: Sequence[Path]) -> None:
    """Raises `InvalidInput` for a plugin that this process has imported and a worker would not.

    files: of the plugins of the run
    """
    for cell in cells:
        for axis, registry in REGISTRIES.items():
            for each in factories(axis, getattr(cell, axis)):
                label = cell.labels[axis]
                require(
                    is_found_by_workers(registry, each, files),
                    f"{axis} {label} is defined in the module {each.__module__}, which workers do "
                    f"not import: name its file as a plugin, and ask for {label!r}",
                )


def _check_networks(cells: Sequence[Cell], file: Path | None) -> None:
    """Raises `InvalidInput` for cells that need the file of a network if there is none, and for
    their defenses if these cannot start from it."""
    given_cells = [cell for cell in cells if given(cell.model) is not None]
    require(file is not None or not given_cells, NEEDS_FILE)
    check_starts(given_cells)


def _states(
    cells: Sequence[Cell], folders: Sequence[Path], options: RunOptions
) -> dict[Cell, CellState]:
    find = partial(
        state_of,
        stale=options.stale,
        curves=options.curves,
        save=options.save,
        reactivate=options.reactivate,
    )
    return {cell: find(cell, folders) for cell in cells}


def _folder(name: str, options: RunOptions) -> Path:
    """The folder of the records: by default that with the name of the suite, or one beside it if
    `--against` names that folder, or if its records are published."""
    usual = Path("results") / name
    kept = (usual / PUBLISHED).exists() or any(same(usual, each) for each in options.against)
    return options.results or (usual.with_name(f"{name}-own") if kept else usual)

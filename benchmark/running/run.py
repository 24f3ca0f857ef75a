"""What is missing of a suite, run cell by cell: `plan` says what, `execute` does it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from rich.console import Console

from bdbench.cells import grid
from bdbench.cells.cell import Cell
from bdbench.cells.cost import added_work
from bdbench.cells.suites import Suite
from bdbench.machine.contention import Contention
from bdbench.machine.devices import precision_of
from bdbench.machine.system import device_name
from bdbench.machine.threads import cores
from bdbench.models.networks.given import NAME, given
from bdbench.models.plugins.errors import InvalidInput, require
from bdbench.models.scope import num_threads
from bdbench.records.beside import Known, Neighbour, join, neighbours, same
from bdbench.records.files import path_of, read
from bdbench.records.record import ALONE, OtherSchema, Record
from bdbench.running.claims import claimed, lock_of
from bdbench.running.engines.base import Engine, WorkerEvents
from bdbench.running.engines.options import ExecutionOptions
from bdbench.running.engines.processes import apart
from bdbench.running.found import found
from bdbench.running.names import Names
from bdbench.running.needs import Need, check_needs, estimate
from bdbench.running.probing import Asking
from bdbench.running.progress import COLUMNS, Reporter, duration, titled
from bdbench.running.schedule import Schedule
from bdbench.running.speed import Speed
from bdbench.running.worker import Job
from bdbench.storage.atomic import check_writable, remove_abandoned
from bdbench.storage.cache import Cache
from bdbench.storage.folders import cache_root, roots
from bdbench.storage.networks import FOLDER as NETWORKS
from bdbench.storage.networks import path_of as network_of
from bdbench.trial import provenance
from bdbench.trial.harness import Harness
from bdbench.trial.networks import check_starts

TO_RUN = ("missing", "unsaved")
"""States of cells, see `_state`."""
LONGEST = 1e9
"""Seconds, some thirty years: what a clock of the system can be set to."""


@dataclass(frozen=True)
class RunOptions:
    """How a suite is run.

    device: auto, cpu, cuda or cuda:1
    results: folder of the records, None for the one with the name of the suite
    against: folders of other records: a cell that has one there is not run
    data: folder of data sets, None for the usual ones
    plugin: files that workers must load
    budget: seconds; no cell is started that would not fit
    limit: seconds that one cell may take
    stale: also run cells whose code has changed
    curves: evaluate at the ends of epochs
    save: keep the network of every cell, and run those again that have a record and no network
    network: file of the network that all defenses start from, of cells of the model `weights`
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
    network: Path | None = None


@dataclass(frozen=True)
class Plan:
    """What a run of a suite would do.

    devices: over which cells are spread
    results: folder of the records
    cells: of the suite
    missing: those that have no record, or not the one that is wanted
    outdated: how many of the others have a record that other code made
    unsaved: how many of the missing have a record, and no network that was to be saved
    beside: other folders of records, and by cell which of them has its record
    """

    name: str
    suite: Suite
    execution: ExecutionOptions
    options: RunOptions
    devices: tuple[torch.device, ...]
    precision: str
    results: Path
    cells: tuple[Cell, ...]
    missing: tuple[Cell, ...]
    outdated: int = 0
    unsaved: int = 0
    beside: tuple[Neighbour, ...] = ()
    there: Mapping[Cell, Path] = field(default_factory=dict)

    @cached_property
    def speed(self) -> Speed:
        """Of this machine. It trains a few steps of each network when it is first asked."""
        cache, curves = Cache(self.job.cache), self.options.curves
        there = found(self.missing, cache, self.device, self.threads, curves)
        return Speed(self.device, self.threads, there, curves, self.asking.speed)

    @property
    def asking(self) -> Asking:
        """How plugins are asked before the run."""
        alone = self.execution.is_here and not self.execution.in_process
        return Asking(self.job, apart if alone else None)

    @property
    def device(self) -> torch.device:
        """The first of them, which speaks for the others."""
        return self.devices[0]

    @property
    def threads(self) -> int:
        """Of a cell: as many whatever else is missing."""
        return self.execution.threads_of(self.device, self.suite.timed)

    @cached_property
    def at_once(self) -> int:
        """Cells that run at the same time: as many as have a place and, where nobody has said how
        many they are, as memory allows."""
        most = self.execution.at_once(len(self.missing), self.devices, self.suite.timed)
        if self.execution.jobs is not None or not self.execution.is_here or not self.missing:
            return most
        fitting = (n for n in range(most, 1, -1) if all(need.fits for need in self._needs(n)))
        return next(fitting, 1)

    @cached_property
    def expected(self) -> float | None:
        """Seconds of the run; None on a cluster, of whose machines nothing is known here."""
        if not self.execution.is_here:
            return None
        return self.speed.seconds(self.missing) / self.at_once

    @cached_property
    def needs(self) -> list[Need]:
        """Memory and disk that the run takes; nothing where that is not known."""
        return self._needs(self.at_once) if self.execution.is_here else []

    def _needs(self, at_once: int) -> list[Need]:
        curves, shared = self.options.curves, math.ceil(at_once / len(self.devices))
        self.asking.footprints(self.missing)
        return estimate(self.missing, self.device, self.results, cache_root(), curves, shared)

    @property
    def job(self) -> Job:
        """What a worker must know."""
        return Job(
            results=self.results.absolute(),
            cache=cache_root().absolute(),
            roots=tuple(root.absolute() for root in roots(self.options.data)),
            device=str(self.device),
            plugins=tuple(path.absolute() for path in self.options.plugin),
            curves=self.options.curves,
            save=self.options.save,
            network=self.options.network and self.options.network.absolute(),
            limit=self.options.limit,
            threads=self.threads,
            family=os.getpid() if self.execution.is_here else None,
        )

    def lines(self) -> Iterator[str]:
        """What is the same for all cells, one for each cell, the sum, and what it takes of time,
        memory and disk."""
        missing, names = set(self.missing), Names(self.cells)
        yield from names.common
        for cell in self.cells:
            cost = f"has its record in {self.there[cell]}" if cell in self.there else ""
            cost = cost or "has its record"
            if cell in missing:
                known = self.execution.is_here
                cost = f"about {duration(self.speed.seconds([cell]))}" if known else "to be run"
            yield f"{cell.key}  {titled(names.of(cell), COLUMNS - len(cell.key) - 2, f': {cost}')}"
        yield f"{self._count}{self._about}"
        yield from self.surroundings()
        yield from map(str, self.needs)

    @property
    def asked(self) -> list[Known]:
        """The cells, as `join` takes them."""
        return [(cell.identity, cell.versions) for cell in self.cells]

    def surroundings(self) -> Iterator[str]:
        """A line on each thing that the reader of a table with the other folders must know."""
        if not self.beside:
            return
        for other in self.beside:
            count = list(self.there.values()).count(other.folder)
            yield f"{count} of {len(self.cells)} cells have their record in {other.folder}"
        yield f"new records go to {self.results}"
        yield from join((), self.beside, self.results, self.asked)[1].remarks

    @property
    def headline(self) -> str:
        """What is to be done, where and how."""
        if not self.execution.is_here:
            return f"{self.name}: {self._count}"
        where = f" on {device_name(self.device)} in {self.precision}"
        how = f", {self.at_once} at once" if self.at_once > 1 else ""
        alone = self.device.type == "cpu" and self.at_once == self.threads == 1 < cores()
        how += f" (--threads {cores()} is faster for one cell)" if alone else ""
        here = ", in this process" if self.execution.in_process else ""
        return f"{self.name}: {self._count}{self._about}{where}{how}{here}"

    @property
    def _count(self) -> str:
        return f"{len(self.missing)} of {len(self.cells)} cells to run"

    @property
    def _about(self) -> str:
        return "" if self.expected is None else f", about {duration(self.expected)}"


def plan(name: str, suite: Suite, execution: ExecutionOptions, options: RunOptions) -> Plan:
    """Look at the records that are there; nothing is trained or written.

    Raises `InvalidInput` for anything in the suite or the options that is not right.
    """
    require(execution.is_here or options.budget is None, "--budget is for --engine local")
    require(
        not suite.timed or (execution.is_here and execution.jobs in (None, 1)),
        f"seconds of {name} would not be comparable: its cells run one after the other on this "
        "machine, so leave out --jobs and --engine",
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
        "--save is for --engine local and slurm: the machines of ray need not share the folder",
    )
    devices = execution.devices(options.device)
    precision = precision_of(suite.precision, devices[0])
    cells = tuple(grid.cells(suite, precision))
    execution = _for_local(cells, execution)
    _check_networks(cells, options.network)
    folder = _folder(name, options)
    beside = neighbours(options.against, folder)
    folders = [folder, *(other.folder for other in beside)]
    found_in = {cell: _found(cell, folders, options) for cell in cells}
    states = [state for state, _ in found_in.values()]
    made = Plan(
        name,
        suite,
        execution,
        options,
        devices,
        precision,
        folder,
        cells,
        missing=tuple(cell for cell in cells if found_in[cell][0] in TO_RUN),
        outdated=states.count("outdated"),
        unsaved=states.count("unsaved"),
        beside=beside,
        there={cell: where for cell, (_, where) in found_in.items() if where in folders[1:]},
    )
    made.asking.triggers(cells)
    made.asking.networks(made.missing)
    return made


@dataclass(frozen=True)
class RunOutcome:
    """What came of a run.

    code: 0 all fine, 1 a cell failed, 2 one failed on bad input
    records: that were made
    refused: why cells could not be begun
    """

    code: int
    records: tuple[Record, ...] = ()
    refused: tuple[str, ...] = ()


def execute(plan: Plan, console: Console) -> RunOutcome:
    """Run what is missing; each record is written when its cell is done.

    Raises `InvalidInput` before anything is trained, where that can be known.
    """
    _tidy(plan)
    if not plan.missing:
        places = [plan.results, *(other.folder for other in plan.beside)]
        line = f"{plan.name}: all {len(plan.cells)} cells have records in "
        line += " or ".join(map(str, places))
        if plan.outdated:
            line += f"; other code made {plan.outdated} of them, --stale runs these again"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
        return RunOutcome(0)
    others = Contention(plan.device) if plan.suite.timed else None
    _check_places(plan)
    if plan.unsaved:
        count = f"{plan.unsaved} record{'s have' if plan.unsaved > 1 else ' has'}"
        console.print(f"{count} no network that was saved, and --save runs the cells again")
    for line in (plan.headline, *Names(plan.missing).common, *plan.surroundings()):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    left = sum(added_work(plan.missing, plan.speed.there).values())
    with Reporter(len(plan.missing), left, console) as reporter:
        if others is not None and (taken := others.meanwhile() or 0) > ALONE:
            unit = "cores" if plan.device.type == "cpu" else "processes"
            reporter.say(f"warning: others use the device, {taken:.2g} {unit}; that costs time")
        schedule = Schedule(
            plan.missing, plan.job.results, plan.speed, plan.options.budget, reporter
        )
        with _engine(plan, reporter) as engine:
            code = schedule.run(engine)
    return RunOutcome(code, tuple(schedule.made), tuple(schedule.refused))


def _engine(plan: Plan, reporter: Reporter) -> Engine:
    events = WorkerEvents(reporter.advance, lambda line: reporter.say(f"warning: {line}"))
    return plan.execution.start(plan.job, events, plan.at_once, plan.devices)


def _check_places(plan: Plan) -> None:
    """Raises `InvalidInput` where a folder, memory, disk or data are missing."""
    check_writable(plan.results)
    if plan.execution.is_here:
        Cache(plan.job.cache).prepare()
        Harness(Cache(plan.job.cache), plan.job.roots, plan.device).check_data(plan.missing)
        check_needs(plan.needs)


def _for_local(cells: Sequence[Cell], execution: ExecutionOptions) -> ExecutionOptions:
    """This process, where plugins are of a notebook or a script, which no other process can make.
    Raises `InvalidInput` where another was asked for."""
    if execution.is_here and execution.jobs is None:
        return replace(
            execution, in_process=execution.in_process or any(cell.local for cell in cells)
        )
    for cell in cells:
        for axis in cell.local:
            raise InvalidInput(
                f"{axis} {cell.labels[axis]} is defined in a notebook or a script, where no worker "
                "can import it: leave out jobs and engine, or move it to a file and name that as a "
                "plugin"
            )
    return execution


def _check_networks(cells: Sequence[Cell], file: Path | None) -> None:
    """Raises `InvalidInput` for cells of a network that is given, where none is, and for defenses
    that do not start from one."""
    of_file = [cell for cell in cells if given(cell.model) is not None]
    require(
        file is not None or not of_file,
        f"model {NAME!r} stands for a network in a file, so it cannot be trained: `bdbench "
        "evaluate FILE` evaluates it and runs the defenses that start from it",
    )
    check_starts(of_file)


def _folder(name: str, options: RunOptions) -> Path:
    """Of the records: that with the name of the suite, and another where it is what one's own
    stand against."""
    usual = Path("results") / name
    published = any(same(usual, folder) for folder in options.against)
    return options.results or (usual.with_name(f"{name}-own") if published else usual)


def _found(
    cell: Cell, folders: Sequence[Path], options: RunOptions
) -> tuple[str, Path] | tuple[str, None]:
    """The state of a cell in the first folder that has a record for it, see `_state`. Networks are
    kept of one's own cells alone, in the first folder."""
    for folder in folders:
        state = _state(cell, folder, options)
        if state != "missing":
            return state, folder
        options = replace(options, save=False)
    return "missing", None


def _state(cell: Cell, folder: Path, options: RunOptions) -> str:
    """Of a cell: "missing" if it needs a run, as with a damaged record, or "unsaved" if only for
    its network; else "finished", or "outdated" if other code made its record. Raises
    `OtherSchema`."""
    path = path_of(folder, cell.key)
    if not path.exists():
        return "missing"
    try:
        record = read(path)
    except OtherSchema:
        raise
    except InvalidInput:
        return "missing"
    outdated = record.provenance.get("sources") != provenance.sources(cell)
    wanted = not (options.stale and outdated) and not (options.curves and not record.curves)
    if record.status == "failed" or not wanted:
        return "missing"
    if options.save and not network_of(folder, cell.key).exists():
        return "unsaved"
    return "outdated" if outdated else "finished"


def _tidy(plan: Plan) -> None:
    """Remove what a run left that was killed right after it had written the record of a cell. On a
    cluster, whose devices are not known here, checkpoints stay until `bdbench cache gc`."""
    job, missing = plan.job, set(plan.missing)
    remove_abandoned(job.results / "records")
    remove_abandoned(job.results / NETWORKS)
    for cell in plan.cells:
        if cell in missing or not lock_of(job.results, cell.key).exists():
            continue
        with suppress(InvalidInput), claimed(job.results, cell.key) as mine:
            if mine and plan.execution.is_here:
                harness = Harness(Cache(job.cache), job.roots, plan.device)
                with num_threads(job.threads):
                    harness.discard(cell)

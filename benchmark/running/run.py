"""`bdbench run`: what is missing of a suite, run cell by cell, and the leaderboard at the end."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from rich.console import Console

from bdbench.cells import grid
from bdbench.cells.cell import Cell
from bdbench.cells.cost import shares
from bdbench.cells.suites import Suite
from bdbench.machine.contention import Others
from bdbench.machine.devices import precision_of
from bdbench.machine.system import device_name
from bdbench.models.plugins.errors import InvalidInput, check
from bdbench.models.plugins.registry import load_file
from bdbench.models.scope import threaded
from bdbench.records.files import path_of, read, read_all
from bdbench.records.record import ALONE, OtherSchema
from bdbench.running.claims import claimed, lock_of
from bdbench.running.engines.base import Ear, Here
from bdbench.running.engines.options import Place
from bdbench.running.needs import Need, check_needs, estimate
from bdbench.running.progress import Reporter, duration
from bdbench.running.schedule import Schedule, title
from bdbench.running.speed import Speed
from bdbench.running.worker import Job
from bdbench.storage.atomic import check_writable
from bdbench.storage.cache import Cache
from bdbench.storage.folders import cache_root, roots
from bdbench.tables.write import write_leaderboard
from bdbench.trial import provenance
from bdbench.trial.harness import Harness


def run_suite(
    name: str,
    suite: Suite,
    place: Place,
    *,
    device: str = "auto",
    results: Path | None = None,
    data: Path | None = None,
    plugin: Sequence[Path] = (),
    budget: float | None = None,
    limit: float | None = None,
    dry_run: bool = False,
    stale: bool = False,
    curves: bool = False,
) -> int:
    """Run what is missing of a suite, and show the leaderboard of all there is. Returns the exit
    code. The options are those of `bdbench run`.

    Raises `InvalidInput` before anything is trained or written, where that can be known.
    """
    check(place.is_here or budget is None, "--budget is for --engine local")
    check(
        not suite.timed or (place.is_here and place.jobs in (None, 1)),
        f"seconds of {name} would not be comparable: its cells run one after the other on this "
        "machine, so leave out --jobs and --engine",
    )
    check(limit is None or limit > 0, f"--limit must be above 0 seconds, got {limit}")
    for path in plugin:
        load_file(path)
    processor = place.device(device)
    exact = precision_of(suite.precision, processor)
    cells = grid.cells(suite, exact)
    folder = results or Path("results") / name
    missing = [cell for cell in cells if not _finished(cell, folder, stale, curves)]
    others = Others(processor) if suite.timed and missing and not dry_run else None
    console = Console()

    speed = Speed(processor, place.threads)
    # Of a cluster's speed, memory and disks nothing is known here.
    needs, expected = [], ""
    if place.is_here and (dry_run or missing):
        at_once = max(1, min(place.jobs or 1, len(missing)))
        needs = estimate(missing, processor, folder, cache_root(), curves, at_once)
        expected = f", about {duration(speed.seconds(missing) / at_once)}"
    if dry_run:
        return _list(cells, missing, speed if place.is_here else None, expected, needs, console)
    job = Job(
        results=folder.absolute(),
        cache=cache_root().absolute(),
        roots=tuple(root.absolute() for root in roots(data)),
        device=str(processor),
        plugins=tuple(path.absolute() for path in plugin),
        curves=curves,
        limit=limit,
        threads=place.threads,
    )
    _tidy([cell for cell in cells if cell not in missing], job, place.is_here)
    if not missing:
        console.print(f"{name}: all {len(cells)} cells have records in {folder}", highlight=False)
        return _show(folder, console)
    check_writable(folder)
    line = f"{name}: {len(missing)} of {len(cells)} cells to run"
    if place.is_here:
        check_writable(job.cache)
        check_needs(needs)
        Harness(Cache(job.cache), job.roots, processor).check_data(missing)
        line += f"{expected} on {device_name(processor)} in {exact}"
    console.print(line, markup=False, highlight=False, soft_wrap=True)
    with Reporter(len(missing), sum(shares(missing).values()), console) as reporter:
        if others is not None and (taken := others.meanwhile() or 0) > ALONE:
            unit = "cores" if processor.type == "cpu" else "processes"
            reporter.say(f"warning: others use the device, {taken:.2g} {unit}; that costs time")
        ear = Ear(reporter.advance, lambda line: reporter.say(f"warning: {line}"))
        schedule = Schedule(missing, job.results, speed, budget, reporter)
        # A timed suite trains in this process, which the probes of its speed have warmed up.
        with Here(job, ear) if suite.timed else place.start(job, ear) as engine:
            code = schedule.run(engine)
    return max(code, _show(folder, console))


def _finished(cell: Cell, folder: Path, stale: bool, curves: bool) -> bool:
    """Whether the cell needs no run; a damaged record does. Raises `OtherSchema`."""
    path = path_of(folder, cell.key)
    if not path.exists():
        return False
    try:
        record = read(path)
    except OtherSchema:
        raise
    except InvalidInput:
        return False
    if stale and record.provenance["sources"] != provenance.sources(cell):
        return False
    if curves and not record.curves:
        return False
    return record.status == "ok"


def _tidy(finished: Sequence[Cell], job: Job, here: bool) -> None:
    """Remove what a run left that was killed right after it had written the record of a cell. On a
    cluster, whose devices are not known here, checkpoints stay until `bdbench cache gc`."""
    for cell in finished:
        if not lock_of(job.results, cell.key).exists():
            continue
        with claimed(job.results, cell.key) as mine, suppress(InvalidInput):
            if mine and here:
                harness = Harness(Cache(job.cache), job.roots, torch.device(job.device))
                with threaded(job.threads):
                    harness.discard(cell)


def _list(
    cells: Sequence[Cell],
    missing: Sequence[Cell],
    speed: Speed | None,
    expected: str,
    needs: Sequence[Need],
    console: Console,
) -> int:
    """One line for each cell, the sum, and what it takes of time, memory and disk, where that is
    known."""
    for cell in cells:
        cost = "has its record"
        if cell in missing:
            cost = f"about {duration(speed.seconds([cell]))}" if speed else "to be run"
        console.print(
            f"{cell.key}  {title(cell)}: {cost}", markup=False, highlight=False, soft_wrap=True
        )
    for line in (f"{len(missing)} of {len(cells)} cells to run{expected}", *map(str, needs)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0


def _show(folder: Path, console: Console) -> int:
    """Write and print the leaderboard of all records in the folder. Returns the exit code."""
    records, damaged = read_all(folder)
    for line in damaged:
        console.print(f"warning: {line}; it is left out", markup=False, highlight=False)
    if records:
        paths = write_leaderboard(records, folder)
        for path in paths:
            if path.suffix == ".md":
                console.print(path.read_text(), markup=False, highlight=False, soft_wrap=True)
        console.print(f"tables in {folder / 'tables'}", markup=False, highlight=False)
    return 1 if damaged else 0

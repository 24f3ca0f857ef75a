"""Run a suite: `execute` runs the cells that a plan says are missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bdbench.cells.cost import added_work
from bdbench.machine.contention import Contention
from bdbench.models.scope import num_threads
from bdbench.records.claims import claimed, lock_of
from bdbench.records.files import NETWORKS, check_folder
from bdbench.records.record import ALONE, Record
from bdbench.running.engines.base import Engine, WorkerEvents
from bdbench.running.engines.fresh import call_in_process
from bdbench.running.names import Names
from bdbench.running.plan import Plan
from bdbench.running.progress import Reporter
from bdbench.running.schedule import Schedule
from bdbench.running.worker import Worker
from bdbench.storage.atomic import remove_abandoned
from bdbench.storage.cache import Cache
from bdbench.storage.folders import low_disk
from bdbench.trial.harness import Harness


@dataclass(frozen=True)
class RunOutcome:
    """The result of a run.

    code: exit code: 0 all fine, 1 a cell failed, 2 one failed on bad input
    records: of the cells that ran
    refused: why cells could not start
    """

    code: int
    records: tuple[Record, ...] = ()
    refused: tuple[str, ...] = ()


def execute(plan: Plan, console: Console) -> RunOutcome:
    """Run what is missing; each record is written when its cell is done.

    Raises `InvalidInput` before anything trains, if a problem can be known by then.
    """
    _tidy(plan)
    if not plan.missing:
        for line in (plan.nothing_to_do, *plan.outdated()):
            _say(console, line)
        return RunOutcome(0)
    others = _others(plan) if plan.suite.timed else None
    _check_places(plan)
    _announce(plan, console)
    work = sum(added_work(plan.missing, plan.speed.done).values())
    with Reporter(len(plan.missing), work, console) as reporter:
        if others is not None:
            _warn_of_others(others(), plan.device, reporter)
        if plan.execution.is_here and (scarce := low_disk(plan.results, plan.job.cache)):
            reporter.say(f"warning: {scarce}")
        results, budget = plan.job.results, plan.options.budget
        before = {cell: plan.states[cell].before for cell in plan.missing}
        schedule = Schedule(before, results, plan.speed, budget, reporter)
        try:
            with _engine(plan, reporter) as engine:
                code = schedule.run(engine)
        finally:
            _remove_temporary(plan.job.results)
    return RunOutcome(code, tuple(schedule.made), tuple(schedule.refused))


def _announce(plan: Plan, console: Console) -> None:
    for line in (
        *filter(None, [plan.note]),
        *plan.damaged(),
        *plan.repeats(),
        *plan.outdated(),
        *plan.unknown(),
        plan.headline,
        *Names(plan.missing).common,
        *plan.surroundings(),
    ):
        _say(console, line)


def _others(plan: Plan) -> Callable[[], float | None]:
    """Tells how much other processes use the device, from now on. A GPU is left to the processes
    of cells, so one of its own asks there."""
    if plan.device.type == "cuda" and not plan.execution.in_process:
        return partial(call_in_process, plan.job, _others_beside)
    return Contention(plan.device).meanwhile


def _others_beside(worker: Worker) -> float | None:
    return Contention(worker.harness.device).meanwhile()


def _warn_of_others(taken: float | None, device: torch.device, reporter: Reporter) -> None:
    if taken is not None and taken > ALONE:
        unit = "cores" if device.type == "cpu" else "processes"
        reporter.say(
            f"warning: other processes use the device ({taken:.2g} {unit}), which distorts seconds"
        )


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _engine(plan: Plan, reporter: Reporter) -> Engine:
    @cache
    def warn(line: str) -> None:
        """Cells that have the same reason warn once."""
        reporter.say(f"warning: {line}")

    return plan.execution.start(
        plan.job, WorkerEvents(reporter.advance, warn), plan.at_once, plan.devices
    )


def _check_places(plan: Plan) -> None:
    """Raises `InvalidInput` where a folder or data are missing."""
    check_folder(plan.results, plan.options.save)
    if plan.execution.is_here:
        Cache(plan.job.cache).prepare()
        Harness(Cache(plan.job.cache), plan.job.roots, plan.device).check_data(plan.missing)


def _tidy(plan: Plan) -> None:
    """Remove the checkpoints and locks of a run that was killed right after it wrote a record. On a
    cluster, whose devices are not known here, checkpoints stay until `bdbench cache clear`."""
    job, missing = plan.job, set(plan.missing)
    _remove_temporary(job.results)
    for cell in plan.cells:
        if cell in missing or not lock_of(job.results, cell.key).exists():
            continue
        # Whatever stays, `bdbench cache clear` removes; no cell may be lost for it.
        with suppress(Exception), claimed(job.results, cell.key) as mine:
            if not mine or not plan.execution.is_here:
                continue
            if not plan.execution.in_process:
                # It finds the folder that the cell's own process had, beside no other plugin.
                call_in_process(job.narrowed(cell), partial(_discard, cell.located))
            else:
                with num_threads(job.threads):
                    Harness(Cache(job.cache), job.roots, plan.device).discard(cell)


def _discard(identity: Mapping[str, Any], worker: Worker) -> None:
    worker.harness.discard(worker.cell(identity))


def _remove_temporary(results: Path) -> None:
    """Remove what writers that were killed left of records and networks."""
    remove_abandoned(results / "records")
    remove_abandoned(results / NETWORKS)

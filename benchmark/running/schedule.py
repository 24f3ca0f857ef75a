"""The order of cells: shared work first, retries of dead workers, and the budget."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from bdbench.cells.cell import Cell
from bdbench.cells.cost import Part, added_work, expected_passes, parts, shared_work
from bdbench.machine.surroundings import working_folder
from bdbench.machine.suspension import now
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.scope import num_threads
from bdbench.records.claims import claimed
from bdbench.records.record import Record
from bdbench.running.engines.base import Died, Engine, Unfit
from bdbench.running.names import Names
from bdbench.running.progress import Reporter, reason, summary
from bdbench.running.speed import Speed
from bdbench.running.worker import Attempt, claiming, written
from bdbench.storage.atomic import Unusable
from bdbench.trial.failure import worker_died
from bdbench.trial.record import failed_record

ATTEMPTS = 3
"""Attempts at a cell whose workers die."""
PAUSE = 1.0
"""Seconds between two checks of cells that another run is working on."""


class Schedule:
    """Runs each cell once with an engine, also while other runs write into the same folder.

    before: the cells, and `stamp` of the record of each when they were chosen
    results: folder of the records
    speed: for the budget; learns from cells that ran
    budget: seconds; no cell starts that would not fit
    reporter: told about every cell

    made: records of this run, in the order in which their cells ended
    refused: why cells could not start
    """

    def __init__(
        self,
        before: Mapping[Cell, int | None],
        results: Path,
        speed: Speed,
        budget: float | None,
        reporter: Reporter,
    ) -> None:
        self.results, self.speed, self.budget, self.reporter = results, speed, budget, reporter
        cells = tuple(before)
        self._names = Names(cells)
        self._work = added_work(cells, speed.done)
        self._parts = {cell: parts(cell) for cell in cells}
        self._shared = {cell: shared_work(cell).keys() for cell in cells}
        self._before = dict(before)
        self._deaths: dict[Cell, list[str]] = {cell: [] for cell in cells}
        self._attempts = Counter[Cell]()
        self._started: dict[Cell, datetime] = {}
        self._waiting = dict.fromkeys(cells)
        self._running: dict[Future[Attempt], Cell] = {}
        self._elsewhere: list[Cell] = []
        self._shared_done = set[Part]()
        self.made: list[Record] = []
        self.refused: list[str] = []
        self._failed: list[Record] = []
        self._unwritten = 0
        self._left_out = 0
        self._start = now()

    def run(self, engine: Engine) -> int:
        """Run all cells; one that fails stops no other. Returns the exit code."""
        while self._waiting or self._running or self._elsewhere:
            while self._waiting and len(self._running) < engine.slots:
                self._begin(self._next(), engine)
            if self._running:
                # Another run may end or die and leave its cells to this one.
                pause = PAUSE if self._elsewhere else None
                for future in wait(self._running, pause, FIRST_COMPLETED).done:
                    self._end(self._running.pop(future), future)
            elif self._elsewhere:
                time.sleep(PAUSE)
            self._take_back()
        if self._left_out:
            count = len(self._before)
            self.reporter.say(f"over the budget, so left out: {self._left_out} of {count} cells")
        errors = [record.error.type for record in self._failed if record.error]
        if self.refused or InvalidInput.__name__ in errors:
            return 2
        return 1 if errors or self._unwritten else 0

    def _next(self) -> Cell:
        """The first waiting cell that shares no unfinished work with a running one; the first of
        all if there is none."""
        running = (self._shared[cell] for cell in self._running.values())
        unfinished = set[Part]().union(*running) - self._shared_done
        free = (cell for cell in self._waiting if unfinished.isdisjoint(self._shared[cell]))
        chosen = next(free, next(iter(self._waiting)))
        del self._waiting[chosen]
        return chosen

    def _begin(self, cell: Cell, engine: Engine) -> None:
        """Start a cell, unless it would exceed the budget."""
        if self._is_left_out(cell):
            return
        self._started.setdefault(cell, datetime.now(UTC))
        short = f"{cell.labels['attack']} · {cell.labels['defense']}"
        found = sum(self.speed.done.get(part, 0.0) for part in self._parts[cell])
        self.reporter.begin(cell.key, self._names.of(cell), short, self._work[cell], found)
        try:
            future = engine.submit(cell, self._before[cell], self._deaths[cell])
        except Exception as error:
            future = Future()
            future.set_exception(error)
        self._running[future] = cell

    def _is_left_out(self, cell: Cell) -> bool:
        """Whether a cell would exceed the budget; it is then counted as left out."""
        spent = now() - self._start
        if self.budget is None or spent + self.speed.seconds([cell]) <= self.budget:
            return False
        self.reporter.skip(cell.key, self._work[cell])
        self._left_out += 1
        return True

    def _end(self, cell: Cell, future: Future[Attempt]) -> None:
        """Handle the end of an attempt: a retry, an error or a result."""
        error = future.exception()
        if isinstance(error, Died):
            deaths = self._deaths[cell]
            deaths.append(str(error))
            if not (isinstance(error, Unfit) and error.retired):
                self._attempts[cell] += 1
            last = f"{'' if isinstance(error, Unfit) else 'worker '}{error}"
            if self._attempts[cell] < ATTEMPTS:
                self.reporter.suspend(cell.key, f"{last}; resuming in another")
                self._waiting = {cell: None, **self._waiting}
                return
            error = worker_died(last, self._attempts[cell])
        if error is None:
            self._settle(cell, future.result())
        elif isinstance(error, InvalidInput):
            self.refused.append(str(error))
            self.reporter.end(cell.key, f"refused, key {cell.key}")
            self.reporter.say(f"  {error}")
        else:
            # An error of a plugin would be in the record of an attempt.
            self._settle(cell, self._failed_attempt(cell, error))

    def _settle(self, cell: Cell, attempt: Attempt) -> None:
        """Report the result of an attempt."""
        if attempt.record is None and attempt.unwritten is not None:
            self._unwritten += 1
            self.reporter.end(cell.key, f"FAILED, key {cell.key}")
            self.reporter.say(f"  {attempt.unwritten}")
        elif attempt.record is None:
            self.reporter.suspend(cell.key, "another run is working on it")
            self._elsewhere.append(cell)
        elif not attempt.mine:
            self.reporter.end(cell.key, "another run has written its record")
            self._note_failure(attempt.record)
        else:
            self._report(cell, attempt.record, attempt.unwritten)
            if attempt.record.status == "ok":
                self._learn(cell, attempt.record)

    def _failed_attempt(self, cell: Cell, error: BaseException) -> Attempt:
        """Write the record of a cell for which no worker could do so."""
        started = self._started[cell]
        # As many threads as the worker had, with which the cell would run again.
        with num_threads(self.speed.threads):
            record = failed_record(
                cell, self.speed.device, error, self._deaths[cell], started=started
            )
        return claiming(
            self.results, cell.key, self._before[cell], lambda: written(self.results, record, cell)
        )

    def _report(self, cell: Cell, record: Record, unwritten: str | None) -> None:
        self.reporter.end(cell.key, summary(record))
        self.made.append(record)
        if unwritten is not None:
            self._unwritten += 1
            self.reporter.say(f"  FAILED: its record could not be written: {unwritten}")
        self._note_failure(record, unwritten is None)

    def _note_failure(self, record: Record, written: bool = True) -> None:
        if record.status == "failed":
            self._failed.append(record)
            # Without --results, `explain` searches the folders in results/.
            here = working_folder() or Path()
            usual = self.results.parent in (Path("results"), here / "results")
            where = "" if usual else f" --results {shlex.quote(str(self.results))}"
            more = f"; bdbench explain {record.key}{where} shows the traceback"
            self.reporter.say(f"  {reason(record)}{more if written else ''}")

    def _learn(self, cell: Cell, record: Record) -> None:
        """Note the work that other cells need no more, and the speed of the model."""
        self._shared_done |= self._shared[cell]
        self.speed.done |= shared_work(cell)
        seconds = record.measured.seconds
        busy = sum(seconds[stage] for stage in ("prepare", "undefended", "fit"))
        self.speed.learn(cell, expected_passes(cell), busy)

    def _take_back(self) -> None:
        """Let cells wait again that no other run is working on any more. Those that this run could
        not start any more are left to the other."""
        for cell in list(self._elsewhere):
            if self._is_left_out(cell):
                self._elsewhere.remove(cell)
                continue
            # Where files cannot be locked, the attempt reports it.
            with suppress(Unusable), claimed(self.results, cell.key) as free:
                if not free:
                    continue
            self._elsewhere.remove(cell)
            self._waiting[cell] = None

"""Which cell is run when: the order, shared work, second attempts and the budget."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from pathlib import Path

from bdbench.cells.cell import Cell
from bdbench.cells.cost import Part, added_work, expected_passes, parts, shared_work
from bdbench.models.plugins.errors import InvalidInput
from bdbench.records.files import write
from bdbench.records.record import Record
from bdbench.running.claims import claimed, stamp
from bdbench.running.engines.base import Died, Engine
from bdbench.running.names import Names
from bdbench.running.progress import Reporter, reason, summary
from bdbench.running.speed import Speed
from bdbench.running.worker import Attempt
from bdbench.storage.atomic import Unusable
from bdbench.trial.harness import failed, lost

ATTEMPTS = 3
"""At a cell whose workers die."""
PAUSE = 1.0
"""Seconds between two looks at cells that another run is at."""


class Schedule:
    """Runs cells with an engine, each once, beside other runs on the same folder.

    results: folder of the records
    speed: for the budget; learns from what ran
    budget: seconds after which no cell may end that is begun
    reporter: told of all that happens

    made: records of this run, in the order in which their cells ended
    refused: why cells could not be begun
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        results: Path,
        speed: Speed,
        budget: float | None,
        reporter: Reporter,
    ) -> None:
        self.results, self.speed, self.budget, self.reporter = results, speed, budget, reporter
        self._names = Names(cells)
        self._waiting, self._elsewhere = dict.fromkeys(cells), list[Cell]()
        self._shares, self._parts = (
            added_work(cells, speed.there),
            {cell: parts(cell) for cell in cells},
        )
        self._common = {cell: shared_work(cell).keys() for cell in cells}
        self._before = {cell: stamp(results, cell.key) for cell in cells}
        self._deaths: dict[Cell, list[str]] = {cell: [] for cell in cells}
        self._running: dict[Future[Attempt], Cell] = {}
        self.made: list[Record] = []
        self._shared = set[Part]()
        self._failed: list[Record] = []
        self.refused: list[str] = []
        self._unkept = 0
        self._left_out = 0
        self._start = time.monotonic()

    def run(self, engine: Engine) -> int:
        """Every cell; one that fails stops nobody else. Returns the exit code."""
        while self._waiting or self._running or self._elsewhere:
            while self._waiting and len(self._running) < engine.slots:
                self._begin(self._next(), engine)
            if self._running:
                # A run that ends or dies leaves its cells to us.
                pause = PAUSE if self._elsewhere else None
                for future in wait(self._running, pause, FIRST_COMPLETED).done:
                    self._end(self._running.pop(future), future)
            elif self._elsewhere:
                time.sleep(PAUSE)
            self._look()
        if self._left_out:
            count = len(self._before)
            self.reporter.say(f"over the budget, so left out: {self._left_out} of {count} cells")
        errors = [record.error["type"] for record in self._failed if record.error]
        if self.refused or InvalidInput.__name__ in errors:
            return 2
        return 1 if errors or self._unkept else 0

    def _next(self) -> Cell:
        """The first in line that need not wait for what a running one makes; else the first."""
        running = (self._common[cell] for cell in self._running.values())
        making = set[Part]().union(*running) - self._shared
        free = (cell for cell in self._waiting if making.isdisjoint(self._common[cell]))
        chosen = next(free, next(iter(self._waiting)))
        del self._waiting[chosen]
        return chosen

    def _begin(self, cell: Cell, engine: Engine) -> None:
        spent = time.monotonic() - self._start
        if self.budget is not None and spent + self.speed.seconds([cell]) > self.budget:
            self.reporter.skip(cell.key, self._shares[cell])
            self._left_out += 1
            return
        short = f"{cell.labels['attack']} · {cell.labels['defense']}"
        found = sum(self.speed.there.get(part, 0.0) for part in self._parts[cell])
        name = self._names.of(cell)
        self.reporter.begin(cell.key, name, short, self._shares[cell], found)
        self._running[engine.submit(cell, self._before[cell], self._deaths[cell])] = cell

    def _end(self, cell: Cell, future: Future[Attempt]) -> None:
        try:
            attempt = future.result()
        except Died as death:
            deaths = self._deaths[cell]
            deaths.append(str(death))
            if len(deaths) < ATTEMPTS:
                self.reporter.again(cell.key, f"its worker was {death}; it goes on in another")
                self._waiting = {cell: None, **self._waiting}
                return
            attempt = self._given_up(cell, lost(deaths), deaths)
        except InvalidInput as error:
            self.refused.append(str(error))
            self.reporter.end(cell.key, f"refused, key {cell.key}")
            self.reporter.say(f"  {error}")
            return
        except Exception as error:
            # Nothing that a plugin did: that is in the record which an attempt gives.
            attempt = self._given_up(cell, error, self._deaths[cell])
        if attempt.record is None and attempt.unkept is not None:
            self._unkept += 1
            self.reporter.end(cell.key, f"FAILED, key {cell.key}")
            self.reporter.say(f"  {attempt.unkept}")
        elif attempt.record is None:
            self.reporter.again(cell.key, "another run is at it")
            self._elsewhere.append(cell)
        elif not attempt.mine:
            self.reporter.end(cell.key, "another run has made its record")
        else:
            self._learn(cell, attempt.record, attempt.unkept)

    def _given_up(self, cell: Cell, error: Exception, retries: Sequence[str]) -> Attempt:
        record = failed(cell, self.speed.device, error, retries)
        try:
            # The claim of the dead is in the way of nobody but leaves its file.
            with claimed(self.results, cell.key):
                write(self.results, record)
        except Unusable as reason:
            return Attempt(record, mine=True, unkept=str(reason))
        return Attempt(record, mine=True)

    def _learn(self, cell: Cell, record: Record, unkept: str | None) -> None:
        self.reporter.end(cell.key, summary(record))
        self.made.append(record)
        if unkept is not None:
            self._unkept += 1
            self.reporter.say(f"  FAILED: there is no record of it: {unkept}")
        if record.status == "failed":
            self._failed.append(record)
            more = f"; bdbench explain {record.key} shows the traceback"
            self.reporter.say(f"  {reason(record)}{more if unkept is None else ''}")
            return
        self._shared |= self._common[cell]
        self.speed.there |= shared_work(cell)
        seconds = record.measured["seconds"]
        busy = sum(seconds[stage] for stage in ("prepare", "undefended", "fit"))
        self.speed.learn(cell, expected_passes(cell), busy)

    def _look(self) -> None:
        """Take back what no other run is at any more."""
        for cell in list(self._elsewhere):
            with suppress(Unusable), claimed(self.results, cell.key) as free:
                if not free:
                    continue
            # Where there are no locks, the attempt will say so.
            self._elsewhere.remove(cell)
            self._waiting[cell] = None

"""One attempt at one cell, wherever it is made: in this process, in another, on another machine."""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch

from bdbench.cells.cell import REGISTRIES, Cell, cell_of
from bdbench.machine.contention import Contention
from bdbench.models.plugins.registry import RegistersNothing, load_file
from bdbench.records.files import path_of, read, write
from bdbench.records.record import Record
from bdbench.running.claims import claimed, stamp
from bdbench.storage.atomic import Unusable
from bdbench.storage.cache import Cache
from bdbench.storage.networks import read as read_network
from bdbench.trial import networks
from bdbench.trial.harness import Harness, TimeLimit


@dataclass(frozen=True)
class Job:
    """All that a worker must know beside its cells.

    results: folder of the records
    cache: folder of the cache
    roots: folders that may hold data sets
    device: its name
    plugins: files to load
    curves: see `Harness`
    save: keep the network that a defense returns
    network: the file of the network that defenses start from, see `Harness.brought`
    limit: seconds that one attempt at a cell may take, None for any
    threads: of a processor, None for as many as torch takes
    family: the process whose descendants are no others, None for this one
    """

    results: Path
    cache: Path
    roots: tuple[Path, ...]
    device: str
    plugins: tuple[Path, ...] = ()
    curves: bool = False
    save: bool = False
    network: Path | None = None
    limit: float | None = None
    threads: int | None = None
    family: int | None = None

    def narrowed(self, cell: Cell) -> Job:
        """The same with the plugin files that a cell needs, and those that register nothing. What
        others do when they are imported does not concern it."""
        needed = {
            _file(part)
            for axis, registry in REGISTRIES.items()
            for part in registry.factories(getattr(cell, axis))
        }
        others = {
            _file(registry.factory(name))
            for registry in REGISTRIES.values()
            for name in registry.names()
        } - needed
        return replace(self, plugins=tuple(p for p in self.plugins if p.resolve() not in others))


@dataclass(frozen=True)
class Attempt:
    """What came of it.

    record: None where another run is at this cell, or nothing can be kept in the folder
    mine: whether the record was made here and not by another run meanwhile
    unkept: why it could not be written, None where it was
    """

    record: Record | None
    mine: bool = False
    unkept: str | None = None


class Worker:
    """Makes attempts, one after the other. `progress` is told the cell and the forward passes.

    isolated: see `Harness`
    """

    def __init__(
        self, job: Job, progress: Callable[[str, int], None], isolated: bool = False
    ) -> None:
        with warnings.catch_warnings():
            # Whoever began the run was told.
            warnings.simplefilter("ignore", RegistersNothing)
            for path in job.plugins:
                load_file(path)
        if job.threads is not None:
            torch.set_num_threads(job.threads)
        self.job, self.progress = job, progress
        if job.family is not None:
            Contention.family = job.family
        self.harness = Harness(
            Cache(job.cache),
            job.roots,
            torch.device(job.device),
            job.curves,
            isolated=isolated,
            brought=None if job.network is None else read_network(job.network),
        )

    def attempt(self, cell: Cell, before: int | None, retries: Sequence[str] = ()) -> Attempt:
        """Run a cell and write its record, unless another run is at it or has done so since.

        before: `stamp` of the cell's record when this run began
        retries: why earlier attempts of this run ended
        """
        try:
            return self._attempt(cell, before, retries)
        except Unusable as error:
            return Attempt(None, mine=True, unkept=str(error))

    def _attempt(self, cell: Cell, before: int | None, retries: Sequence[str]) -> Attempt:
        with claimed(self.job.results, cell.key) as mine:
            if not mine:
                return Attempt(None)
            if stamp(self.job.results, cell.key) != before:
                return Attempt(read(path_of(self.job.results, cell.key)))
            record = self.run(cell, retries)
            try:
                keep(self.job.results, record, cell)
            except Unusable as error:
                return Attempt(record, mine=True, unkept=str(error))
            self.discard(record, cell)
            return Attempt(record, mine=True)

    def cell(self, identity: Mapping[str, Any]) -> Cell:
        """What another process told of by its specs: here its plugins are loaded."""
        return cell_of(identity)

    def run(self, cell: Cell, retries: Sequence[str]) -> Record:
        """The record of a cell, within the limit. Its network is kept first, if it is to be: what
        has a record is not run again. Raises `Unusable` where it cannot be."""
        self.harness.progress = lambda work: self.progress(cell.key, work)
        with limited(self.job.limit):
            finished = self.harness.finish(cell, retries)
        if self.job.save and finished.network is not None:
            networks.keep(self.job.results, cell, finished.network)
        return finished.record

    def discard(self, record: Record, cell: Cell) -> None:
        """Remove the checkpoints of a finished cell; those of a failed one are for the next run."""
        if record.status == "ok":
            self.harness.discard(cell)


def attempted(
    worker: Worker, identity: Mapping[str, Any], before: int | None, retries: Sequence[str]
) -> Attempt:
    """`Worker.attempt` for a process that is told of a cell by its specs."""
    return worker.attempt(worker.cell(identity), before, retries)


def keep(results: Path, record: Record, cell: Cell) -> None:
    """Write a record, unless the code of one of its plugins is not wholly known: it would pass for
    that of later code."""
    unknown = [cell.labels[axis] for axis, code in cell.local.items() if not code.whole]
    if unknown:
        warnings.warn(
            f"the record of {', '.join(unknown)} is not kept: it uses something whose source cannot"
            " be read, such as a tensor outside of the class",
            stacklevel=2,
        )
    else:
        write(results, record)


def _file(factory: Callable[..., Any]) -> Path | None:
    """Where a plugin was defined."""
    file = getattr(sys.modules.get(factory.__module__), "__file__", None)
    return Path(file).resolve() if file else None


@contextmanager
def limited(seconds: float | None) -> Iterator[None]:
    """Raises `TimeLimit` inside the block when the seconds are over. For the main thread."""

    def ring(number: int, frame: Any) -> NoReturn:
        raise TimeLimit(f"over the limit of {seconds:g} s; another run goes on from here")

    if seconds is None:
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

"""One attempt at one cell: in this process, in another one, or on another machine."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from bdbench.cells.cell import Cell, cell_of
from bdbench.machine.contention import Contention
from bdbench.machine.devices import DeviceFull, indexed, is_shared
from bdbench.machine.surroundings import surroundings_kept
from bdbench.machine.suspension import now
from bdbench.models.plugins.errors import InvalidInput, require
from bdbench.models.plugins.files import RegistersNothing
from bdbench.models.plugins.notices import notify
from bdbench.records.beside import SETTING
from bdbench.records.claims import claimed, stamp
from bdbench.records.files import network_of, path_of, read, write
from bdbench.records.parts import Identity
from bdbench.records.record import REACTIVATED, OtherSchema, Record
from bdbench.running.plugin_sources import Sources, load_unchanged
from bdbench.storage.atomic import Unusable
from bdbench.storage.cache import Cache
from bdbench.storage.networks import read as read_network
from bdbench.trial import networks
from bdbench.trial.failure import TimeLimit, out_of_gpu_memory, over_limit
from bdbench.trial.harness import Harness
from bdbench.trial.provenance import needed_plugin_files
from bdbench.trial.record import failed_record

SOON = 0.05
"""Seconds, at least, until a timer that rang too early rings again."""


@dataclass(frozen=True)
class Job:
    """All that a worker needs beside its cells.

    results: folder of the records
    cache: folder of the cache
    roots: folders that may hold data sets
    device: its name
    plugins: files to load
    sources: of these files when the run started; a worker refuses others
    curves: see `Harness`
    save: store the network that a defense returns
    reactivate: see `Harness`
    network: the file of the network that defenses start from, see `Harness.given`
    limit: seconds that one attempt at a cell may take, None for no limit
    spent: seconds of the limit that are gone
    shares, timed, resumed: see `Harness`
    images: by setting, see `setting_of`, the hash of the images of the records that cells shall
        share a table with, and the folder of these records if it is not `results`
    threads: of a CPU, None for as many as torch uses
    family: see `Contention`
    movable: whether the run has another place for a cell whose GPU fails
    moved: whether the cell has left a GPU for want of memory, so that it may be too large for all
    """

    results: Path
    cache: Path
    roots: tuple[Path, ...]
    device: str
    plugins: tuple[Path, ...] = ()
    sources: Sources = field(default_factory=dict)
    curves: bool = False
    save: bool = False
    reactivate: bool = False
    network: Path | None = None
    limit: float | None = None
    spent: float = 0.0
    shares: bool = True
    timed: bool = False
    resumed: int = 0
    images: Mapping[str, tuple[str, Path | None]] = field(default_factory=dict)
    threads: int | None = None
    family: int | None = None
    movable: bool = False
    moved: bool = False

    def narrowed(self, cell: Cell) -> Job:
        """The same without the plugin files that this cell does not need, so that importing these
        cannot affect it."""
        needed = {file.resolve() for file in needed_plugin_files(cell)}
        return replace(self, plugins=tuple(p for p in self.plugins if p.resolve() in needed))

    def repeated(self, cell: Cell) -> Job:
        """The same, but what the record of a cell already holds, the one that replaces it shall
        hold too."""
        found = None
        with suppress(Unusable):
            found = readable(self.results, cell.key)
        if found is None:
            return self
        return replace(
            self,
            curves=self.curves or bool(found.curves),
            reactivate=self.reactivate or found.count(REACTIVATED) is not None,
        )

    def saves(self, cell: Cell) -> bool:
        """Whether to store the network of a cell: also in place of one that is stored."""
        return self.save or network_of(self.results, cell.key).exists()

    def suffices(self, record: Record) -> bool:
        """Whether a record holds what this run asks for; a failed one says why it does not."""
        return record.status == "failed" or (
            record.holds(curves=self.curves, reactivate=self.reactivate)
            and (not self.save or network_of(self.results, record.key).exists())
        )


@dataclass(frozen=True)
class Attempt:
    """The result of an attempt.

    record: None if another run is working on this cell, or the folder cannot be written
    mine: whether this attempt made the record, and not another run
    unwritten: why the record could not be written, None if it was
    """

    record: Record | None
    mine: bool = False
    unwritten: str | None = None


class Worker:
    """Makes attempts, one after the other.

    progress: called with the key of a cell and finished forward passes
    isolated: see `Harness`

    Raises `InvalidInput` for a plugin file that fails, or has changed since the run started.
    """

    def __init__(
        self, job: Job, progress: Callable[[str, int], None], isolated: bool = False
    ) -> None:
        # What a file leaves changed is restored, as where it is imported in this process.
        with surroundings_kept(), warnings.catch_warnings():
            # The process that started the run has shown this warning.
            warnings.simplefilter("ignore", RegistersNothing)
            for path in job.plugins:
                load_unchanged(path, job.sources)
        if job.threads is not None:
            torch.set_num_threads(job.threads)
        self.job, self.progress = job, progress
        if job.family is not None:
            Contention.family = job.family
        self.harness = Harness(
            Cache(job.cache),
            job.roots,
            indexed(job.device),
            job.curves,
            isolated=isolated,
            given=None if job.network is None else read_network(job.network),
            reactivate=job.reactivate,
            shares=job.shares,
            timed=job.timed,
            resumed=job.resumed,
        )

    def attempt(self, cell: Cell, retries: Sequence[str] = ()) -> Attempt:
        """Run a cell and write its record. The caller has the claim of the cell, see `claiming`.

        retries: why earlier attempts of this run ended
        """
        try:
            record = self.run(cell, retries)
        except Unusable as error:
            return Attempt(None, mine=True, unwritten=str(error))
        made = written(self.job.results, record, cell)
        if made.unwritten is None:
            self.discard(record, cell)
        return made

    def cell(self, identity: Mapping[str, Any]) -> Cell:
        """The cell that another process described by its specs, with plugins of this process."""
        return cell_of(identity)

    def run(self, cell: Cell, retries: Sequence[str]) -> Record:
        """The record of a cell, within the limit; see `Job.repeated`. The network is written before
        the record, as a cell with a record does not run again. Raises `Unusable` if it cannot be
        written, `InvalidInput` as `Harness.finish` does, and see `check_memory`."""
        job = self.job.repeated(cell)
        self.harness.curves, self.harness.reactivate = job.curves, job.reactivate
        self.harness.progress = lambda work: self.progress(cell.key, work)
        try:
            with limited(self.job.limit, self.job.spent):
                self.check_images(cell)
                finished = self.harness.finish(cell, retries)
        except InvalidInput:
            raise
        except BaseException as error:
            if not self.harness.fails(error):
                raise
            self.check_memory(error)
            # It was raised outside of the trial, such as while images were loaded.
            isolated = self.harness.isolated
            return failed_record(cell, self.harness.device, error, retries, isolated)
        self.check_memory(finished.failure)
        done = finished.record.status == "ok"
        if done and finished.network is not None and job.saves(cell):
            networks.keep(self.job.results, cell, finished.network)
        return finished.record

    def check_memory(self, failure: BaseException | None) -> None:
        """Raises `DeviceFull` if a cell failed for want of memory on a GPU that others use, and the
        run has another place for it."""
        device, moves = self.harness.device, self.job.movable and not self.job.moved
        if moves and failure and out_of_gpu_memory(failure) and is_shared(device):
            raise DeviceFull(f"{device} has too little memory beside other processes")

    def check_images(self, cell: Cell) -> None:
        """See `check_images`."""
        known, beside = self.job.images.get(setting_of(cell.specs), (None, None))
        check_images(self.harness, cell, known, beside or self.job.results, bool(beside))

    def discard(self, record: Record, cell: Cell) -> None:
        """Remove the checkpoints of a finished cell; a failed one keeps them for the next run."""
        if record.status == "ok":
            self.harness.discard(cell)


def check_images(
    harness: Harness, cell: Cell, known: str | None, folder: Path, beside: bool = False
) -> None:
    """Raises `InvalidInput` if the records that the cell shall join are of other images.

    known: hash of their images, None if it is not known
    beside: whether these are the records of another folder than that of the run
    """
    if known is not None:
        here = harness.dataset(cell.dataset).sha256
        other = f"leave out --against {folder}" if beside else "name another folder with --results"
        require(
            here == known,
            f"the images of {cell.labels['dataset']} (data {here:.12}) are not those of the "
            f"records in {folder} (data {known:.12}), with which they cannot share a table: "
            f"{other}, or name the images of these records with --data",
        )


def setting_of(specs: Mapping[str, Any] | Identity) -> str:
    """Data set, model and recipe of a cell: a table has one set of images for each."""
    return " ".join(str(specs[axis]) for axis in SETTING)


def attempted(worker: Worker, identity: Mapping[str, Any], retries: Sequence[str]) -> Attempt:
    """`Worker.attempt` for a cell that is described by its specs."""
    return worker.attempt(worker.cell(identity), retries)


def claiming(
    results: Path,
    key: str,
    before: int | None,
    work: Callable[[], Attempt],
    suffices: Callable[[Record], bool] = lambda record: True,
) -> Attempt:
    """What `work` returns, under the claim of a cell, unless another run is working on the cell or
    has written its record. `work` may run in other processes.

    key: of the cell
    before: `stamp` of its record when this run chose it
    suffices: see `Job.suffices`
    """
    try:
        with claimed(results, key) as mine:
            other = by_another(results, key, before, mine, suffices)
            return other or _or_record(results, key, work)
    except Unusable as error:
        return Attempt(None, mine=True, unwritten=str(error))


def _or_record(results: Path, key: str, work: Callable[[], Attempt]) -> Attempt:
    """What `work` returns; the record, if its process died after it had written that."""
    start = stamp(results, key)
    try:
        return work()
    except (Exception, TimeLimit):
        record = None if stamp(results, key) == start else readable(results, key)
        if record is None:
            raise
        return Attempt(record, mine=True)


def by_another(
    results: Path,
    key: str,
    before: int | None,
    mine: bool,
    suffices: Callable[[Record], bool],
) -> Attempt | None:
    """The attempt at a cell that another run is working on or has finished; None for any other.

    mine: whether this run has the claim
    suffices: see `Job.suffices`; the other run may have been asked for less
    """
    if not mine:
        return Attempt(None)
    if stamp(results, key) == before:
        return None
    found = readable(results, key)
    return None if found is None or not suffices(found) else Attempt(found)


def written(results: Path, record: Record, cell: Cell) -> Attempt:
    """The attempt that made a record, which is written, see `keep`."""
    try:
        keep(results, record, cell)
    except Unusable as error:
        return Attempt(record, mine=True, unwritten=str(error))
    return Attempt(record, mine=True)


def keep(results: Path, record: Record, cell: Cell) -> None:
    """Write a record, unless the code of one of its plugins is not completely known: after a change
    of that code, the record would still count as its result.

    Raises `Unusable` if it cannot be written, and for a failure that would replace results, also
    those of other code. The caller has the claim of the cell.
    """
    if record.status == "failed" and _has_results(results, cell.key):
        raise Unusable("it would replace one that has results")
    unknown = [cell.labels[axis] for axis, code in cell.local.items() if not code.whole]
    if unknown:
        notify(
            f"the record of {', '.join(unknown)} is not kept: the class uses something whose source"
            " cannot be read; move it to a plugin file, or into the class",
            stacklevel=2,
        )
    else:
        write(results, record)


def _has_results(results: Path, key: str) -> bool:
    """Whether the record of a cell is there and did not fail. Raises `Unusable` as `keep` does."""
    found = readable(results, key)
    return found is not None and found.status == "ok"


def readable(results: Path, key: str) -> Record | None:
    """The record of a cell, None for one that is missing or damaged. Raises `Unusable` for one of
    another version or that cannot be read, which must not be replaced."""
    try:
        return read(path_of(results, key))
    except OtherSchema as error:
        raise Unusable(str(error)) from error
    except Unusable:
        raise
    except InvalidInput:
        return None


@contextmanager
def limited(seconds: float | None, spent: float = 0.0) -> Iterator[None]:
    """Raises `TimeLimit` inside the block after so many seconds. Works in the main thread only.

    spent: seconds that are gone; at least one is left, in which the block can begin
    """
    if seconds is None:
        yield
        return
    end = now() + max(seconds - spent, min(seconds, 1.0))

    def ring(number: int, frame: Any) -> None:
        # The timer also runs while this process is suspended.
        if (left := end - now()) <= 0:
            raise over_limit(seconds)
        signal.setitimer(signal.ITIMER_REAL, max(left, SOON))

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, end - now())
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

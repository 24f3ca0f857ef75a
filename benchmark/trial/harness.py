"""Runs cells on one device: loads their data, runs the trial, makes the record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bdbench.cells.cell import Cell, rebuilt
from bdbench.datasets.base import Dataset, Source, fingerprint
from bdbench.datasets.registry import datasets
from bdbench.machine.clock import Stopwatch, peak_memory, reset_peak_memory
from bdbench.machine.contention import Contention, combine
from bdbench.machine.devices import use
from bdbench.machine.surroundings import surroundings_kept
from bdbench.models.networks.classifier import Classifier
from bdbench.models.plugins.blame import blaming
from bdbench.models.plugins.errors import SIGNALS, require
from bdbench.models.plugins.notices import notify
from bdbench.records.record import Record
from bdbench.storage.cache import Cache
from bdbench.storage.checkpoints import PATIENCE, discard
from bdbench.storage.networks import Stored, weights_sha256
from bdbench.trial import company, provenance
from bdbench.trial.clean_budget import budget_of
from bdbench.trial.curves import start_curve
from bdbench.trial.evaluation import check_victims
from bdbench.trial.example import example
from bdbench.trial.failure import TimeLimit
from bdbench.trial.networks import starting_weights
from bdbench.trial.poisoned import PoisonedData, poison
from bdbench.trial.record import failure_of, measured_of, record_of
from bdbench.trial.trial import run_trial
from bdbench.trial.undefended import train_undefended
from bdbench.trial.warm_up import warm_up
from bdbench.trial.workspace import Workspace


@dataclass
class Harness:
    """Runs cells one after the other on one device.

    cache: for decoded data, poisoned sets and undefended networks
    roots: folders that may hold data sets
    curves: evaluate the watched network at the ends of epochs, see `TrainingMonitor`; a defense
        that trains none has one point
    progress: called with finished work, in forward passes of one image; a backward pass counts two
    patience: see `Checkpoints`
    isolated: whether this process runs one cell only; then any exception is a failure of the cell
    given: the network of a user that defenses start from, in cells of the model `weights`
    reactivate: also measure whether the backdoor comes back, see `reactivated`
    shares: whether other cells may use what is made here; else what the cache lacks is made for one
        cell alone
    timed: whether seconds are compared, so that no other cell runs meanwhile; then an undefended
        network of a run that was not timed is trained again
    resumed: how often the processes resumed that made what the cell shares
    """

    cache: Cache
    roots: Sequence[Path]
    device: torch.device
    curves: bool = False
    progress: Callable[[int], None] = lambda work: None
    patience: float = PATIENCE
    isolated: bool = False
    given: Stored | None = None
    reactivate: bool = False
    shares: bool = True
    timed: bool = False
    resumed: int = 0
    _datasets: dict[tuple[str, str | None], Dataset] = field(default_factory=dict)

    def __post_init__(self) -> None:
        provenance.settle()

    def dataset(self, source: Source) -> Dataset:
        """The images of a data set on the device, loaded once. Warns of the files that are not
        read. Raises `InvalidInput`."""
        identity = datasets.located(source), source.content
        if identity not in self._datasets:
            loaded = source.load(self.roots, self.cache)
            if not all(map(datasets.is_built_in, datasets.factories(source))):
                _check_declared(loaded, source, datasets.label(source))
                _check_hash(loaded, datasets.label(source))
            for note in loaded.notes:
                notify(f"data set {datasets.label(source)}: {note}", stacklevel=2)
            self._datasets[identity] = replace(
                loaded, train=loaded.train.to(self.device), test=loaded.test.to(self.device)
            )
        return self._datasets[identity]

    def check_data(self, cells: Iterable[Cell]) -> None:
        """Raises `InvalidInput` for the first data set that cannot be found, before anything
        trains."""
        sources = {cell.located["dataset"]: cell.dataset for cell in cells}
        for source in sources.values():
            with blaming(f"looking for data set {datasets.label(source)}"):
                if source.locate(self.roots) is None:
                    source.load(self.roots, self.cache)

    def poisoned(self, cell: Cell) -> PoisonedData:
        """What the attack of a cell makes of its data set, the same as in `run`."""
        with surroundings_kept():
            return poison(self._workspace(rebuilt(cell), Stopwatch(self.device)))

    def share(self, cell: Cell, networks: int) -> int:
        """Make the poisoned set of a cell and so many of its undefended networks, unless the cache
        has them. Returns how often that resumed. Raises what the attack raises, and `InvalidInput`
        as `finish` does."""
        use(self.device)
        cell = rebuilt(cell)
        ws = self._workspace(cell, Stopwatch(self.device))
        check_victims(cell.attack, ws.dataset.test, f"attack {cell.labels['attack']}")
        if networks or cell.attack.trains:
            warm_up(cell, self.device)
        data = ws.poisoned = poison(ws)
        start_curve(ws, data)
        for n in range(networks):
            train_undefended(ws, data.train, n)
        return ws.resumed

    def run(self, cell: Cell, retries: Sequence[str] = ()) -> Record:
        """The record of a cell, see `finish`."""
        return self.finish(cell, retries).record

    def finish(self, cell: Cell, retries: Sequence[str] = ()) -> Finished:
        """Run a cell. An exception in its attack or defense becomes a failed record. Raises
        `InvalidInput` for a data set that cannot be loaded, has no image to attack or a
        class with too few images to lend, and for a network that should be given and is not.

        A cell that was interrupted resumes from its last checkpoint. Checkpoints stay until
        `discard`, which is for when the record is stored.

        retries: why earlier attempts of the same run ended
        """
        started, watch = datetime.now(UTC), Stopwatch(self.device)
        use(self.device)
        reset_peak_memory(self.device)
        others = Contention(self.device)
        failure = None
        with surroundings_kept():
            cell = rebuilt(cell)
            ws = self._workspace(cell, watch)
            ws.given = starting_weights(self.given, cell)
            check_victims(cell.attack, ws.dataset.test, f"attack {cell.labels['attack']}")
            budget_of(cell, ws.dataset.train)
            try:
                # Before the clock of any stage runs.
                warm_up(cell, self.device)
                results = run_trial(ws)
            except BaseException as error:
                if not self.fails(error):
                    raise
                results, failure = failure_of(error), error
                # Its attack may have written in the images.
                self._datasets.clear()
        measured = measured_of(
            started,
            retries,
            seconds=watch.seconds,
            memory=max(peak_memory(self.device), ws.peak),
            work=ws.monitor.work,
            others=combine([others.meanwhile(), *ws.contention]),
            resumed=ws.resumed,
            isolated=self.isolated,
        )
        # Every call to a GPU may fail after an error on it, and the first one is to be told.
        unreadable = () if failure is None else (Exception, TimeLimit)
        with suppress(*unreadable):
            results |= {"example": _example(ws)}
        hashes: dict[str, Any] = {}
        with suppress(*unreadable):
            hashes = self._hashes(ws)
        origin = provenance.of(cell, self.device, ws.dataset) | hashes
        record = record_of(cell, origin, measured, results)
        return Finished(record, ws.network, ws.poisoned, failure)

    def fails(self, error: BaseException) -> bool:
        """Whether an exception fails its cell. In a process that runs more than one, Ctrl-C does
        not."""
        return self.isolated or isinstance(error, TimeLimit) or not isinstance(error, SIGNALS)

    def checkpoints(self, cell: Cell) -> list[Path]:
        """The folders of the checkpoints of a cell, without curves and with them."""
        ws = self._workspace(cell, Stopwatch(self.device))
        both = (replace(ws, curves=curves) for curves in (False, True))
        return [each.folder("fit", each.fit_key) for each in both]

    def discard(self, cell: Cell) -> None:
        """Remove the checkpoints of a cell."""
        for folder in self.checkpoints(cell):
            discard(folder)

    def _workspace(self, cell: Cell, watch: Stopwatch) -> Workspace:
        # The seconds in which another process makes what a cell needs are not those of its stages.
        self.cache.waiting = partial(watch.stage, "wait")
        with watch.stage("load"):
            dataset = self.dataset(cell.dataset)
        company.enter(cell, "dataset", "model")
        return Workspace(
            cell,
            dataset,
            self.device,
            self.cache,
            watch,
            self.curves,
            self.progress,
            self.patience,
            reactivate=self.reactivate,
            shares=self.shares,
            timed=self.timed,
            resumed=self.resumed,
        )

    def _hashes(self, ws: Workspace) -> dict[str, Any]:
        """Those of the networks that a cell starts from and ends in, for its provenance."""
        found: dict[str, Any] = {}
        if self.given is not None and ws.given is not None:
            found["given"] = {"file": self.given.file, "sha256": weights_sha256(ws.given)}
        if ws.network is not None:
            found["network_sha256"] = weights_sha256(ws.network.state_dict())
        return found


@dataclass(frozen=True)
class Finished:
    """A cell that was run in this process.

    network: what the defense returned, None if the cell failed before
    poisoned: what the attack made, None if the cell failed before
    failure: the exception, None if there was none
    """

    record: Record
    network: Classifier | None
    poisoned: PoisonedData | None
    failure: BaseException | None


def _check_declared(loaded: Dataset, source: Source, name: str) -> None:
    """Raises `InvalidInput` if the images are not those that a data set declares: networks and
    triggers are made for its size and its classes."""
    require(
        isinstance(loaded, Dataset),
        f"load of data set {name} must return a Dataset, got {type(loaded).__name__}",
    )
    classes, size = source.num_classes, source.image_size
    for which, images in (("training", loaded.train), ("test", loaded.test)):
        require(len(images) > 0, f"data set {name} has no {which} images")
        stated = f"{classes} classes of {size} x {size} pixels"
        height, width = images.size
        found = f"{images.num_classes} classes of {height} x {width} pixels"
        require(
            found == stated,
            f"data set {name} declares {stated}, and its {which} set has {found}: change "
            "num_classes and image_size, or load",
        )
    names = len(loaded.class_names)
    require(names == classes, f"data set {name} has {names} class names for {classes} classes")


def _check_hash(loaded: Dataset, name: str) -> None:
    """Raises `InvalidInput` if a data set has another hash than it says: others would be found in
    the cache for its images."""
    require(
        loaded.sha256 == fingerprint(loaded.train, loaded.test),
        f"the sha256 of data set {name} is not that of its images: set it to "
        "bdbench.datasets.fingerprint(train, test)",
    )


def _example(ws: Workspace) -> dict[str, Any]:
    """See `example`. A cell that failed has one if its attack did not."""
    if ws.poisoned is None:
        return {}
    found = example(ws.dataset.test, ws.poisoned.triggered, ws.goal)
    return found | {"part": next(iter(ws.goals))} if found and ws.goals else found

"""The only place where an attack meets a defense: `Harness.run(cell) -> Record`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from bdbench.cells.cell import Cell
from bdbench.cells.cost import LENT, Sample
from bdbench.datasets.base import Dataset, Source
from bdbench.datasets.registry import datasets
from bdbench.defenses.base import Context, Journal
from bdbench.machine.clock import Stopwatch, peak_memory, reset_peak_memory
from bdbench.machine.contention import Contention, combine
from bdbench.models import observer
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier, check_network
from bdbench.models.observer import Observer, observed_by
from bdbench.models.plugins.errors import require
from bdbench.models.plugins.spec import Spec
from bdbench.models.rng import derive, seeded, stream
from bdbench.models.training.context import TrainingContext
from bdbench.models.training.loop import features, sample_losses, train
from bdbench.models.training.resume import kept_by
from bdbench.records.count import Count
from bdbench.records.record import METRICS, SCHEMA, STAGES, STANDS, TESTED, TRAINED, Record
from bdbench.storage import artefacts
from bdbench.storage.cache import Cache, Payload
from bdbench.storage.checkpoints import PATIENCE, Checkpoints, discard
from bdbench.storage.keys import digest_of
from bdbench.storage.networks import Stored, weights_sha256
from bdbench.trial import evaluation as metrics
from bdbench.trial import keys, networks, provenance
from bdbench.trial.clean_budget import clean_budget, lent
from bdbench.trial.example import example
from bdbench.trial.failure import error_of
from bdbench.trial.guard import Lent, unchanged
from bdbench.trial.monitor import Point, TrainingMonitor
from bdbench.trial.poisoned import PoisonedData
from bdbench.trial.warm_up import warm_up

POINT = ("epoch", *METRICS, "clean_loss", "poisoned_loss", *STANDS)
"""What a point of a curve holds."""

DRAWN = 2_000
"""Training images whose embeddings are kept for figures."""


@dataclass
class Harness:
    """Runs cells one after the other on one device.

    cache: for decoded data, poisoned sets and undefended networks
    roots: folders that may hold data sets
    curves: evaluate the watched network at the ends of epochs, see `TrainingMonitor`; a defense
        that trains none has one point
    progress: told of finished work, in forward passes of one image; a backward pass counts two
    patience: see `Checkpoints`
    isolated: whether this process is for one cell alone; then whatever ends a plugin is its failure
    brought: what the defenses of cells of the model `weights` start from
    """

    cache: Cache
    roots: Sequence[Path]
    device: torch.device
    curves: bool = False
    progress: Callable[[int], None] = lambda work: None
    patience: float = PATIENCE
    isolated: bool = False
    brought: Stored | None = None
    _datasets: dict[tuple[str, str | None], Dataset] = field(default_factory=dict)

    def dataset(self, source: Source) -> Dataset:
        """The images of a data set, on the device, loaded once. Raises `InvalidInput`."""
        meant = datasets.located(source), source.content
        if meant not in self._datasets:
            loaded = source.load(self.roots, self.cache)
            self._datasets[meant] = replace(
                loaded, train=loaded.train.to(self.device), test=loaded.test.to(self.device)
            )
        return self._datasets[meant]

    def check_data(self, cells: Iterable[Cell]) -> None:
        """Raises `InvalidInput` for the first data set that is nowhere, before hours are spent."""
        sources = {cell.located["dataset"]: cell.dataset for cell in cells}
        for source in sources.values():
            if source.locate(self.roots) is None:
                source.load(self.roots, self.cache)

    def poisoned(self, cell: Cell) -> PoisonedData:
        """What the attack of a cell makes of its data set, the same that `run` defends against."""
        dataset, watch = self.dataset(cell.dataset), Stopwatch(self.device)
        return _Trial(self, cell, dataset, watch).poisoned()

    def run(self, cell: Cell, retries: Sequence[str] = ()) -> Record:
        """The record of a cell, see `finish`."""
        return self.finish(cell, retries).record

    def finish(self, cell: Cell, retries: Sequence[str] = ()) -> Finished:
        """Run a cell. Whatever its attack or defense raises becomes a failed record; a data set
        that cannot be loaded, or has no image to attack, raises `InvalidInput`, and so does a
        network that should be given and is not.

        A run that was broken off goes on from its last checkpoint. The checkpoints stay until
        `discard`, which is for when the record is in a safe place. `retries` say why earlier
        attempts of the same command ended.
        """
        started, watch = datetime.now(UTC), Stopwatch(self.device)
        reset_peak_memory(self.device)
        others = Contention(self.device)
        with watch.stage("load"):
            dataset = self.dataset(cell.dataset)
        start = networks.lent(self.brought, cell)
        metrics.check_victims(cell.attack, dataset.test, f"attack {cell.labels['attack']}")
        trial, failure = _Trial(self, cell, dataset, watch, start), None
        try:
            # Before any clock of a stage runs.
            warm_up(cell, self.device)
            outcome = trial.outcome()
        except self._failures as error:
            outcome, failure = _failure(error), error
        measured = _measured(
            started,
            retries,
            seconds=watch.seconds,
            memory=peak_memory(self.device),
            work=trial.monitor.work,
            others=combine([others.meanwhile(), *trial.taken]),
            resumed=trial.resumed,
            isolated=self.isolated,
        )
        origin = {
            **provenance.of(cell, self.device, dataset),
            **_networks(self.brought, start, trial.network),
        }
        record = _record(cell, origin, measured, outcome | {"example": trial.example()})
        return Finished(record, trial.network, trial.data, failure)

    @property
    def _failures(self) -> tuple[type[BaseException], ...]:
        """Ctrl-C in a process that goes on after a cell is no failure of it."""
        return (BaseException,) if self.isolated else (Exception, SystemExit, TimeLimit)

    def checkpoints(self, cell: Cell) -> Path:
        """The folder of the checkpoints of a cell."""
        dataset = self.dataset(cell.dataset)
        return _Trial(self, cell, dataset, Stopwatch(self.device)).folder("fit")[0]

    def discard(self, cell: Cell) -> None:
        """Remove the checkpoints of a cell."""
        discard(self.checkpoints(cell))


@dataclass(frozen=True)
class Finished:
    """What is left of a cell that was run, in this process.

    network: that the defense returned, None if it failed
    poisoned: what the attack made, None if it failed
    failure: what was raised, None if nothing was
    """

    record: Record
    network: Classifier | None
    poisoned: PoisonedData | None
    failure: BaseException | None


class TimeLimit(BaseException):
    """The time for a cell is up. Not an Exception, so that no plugin takes it for its own."""


class WorkerDied(Exception):
    """The process that ran a cell ended before it was done."""


def lost(retries: Sequence[str]) -> WorkerDied:
    """Why there is nothing of a cell none of whose attempts lived long enough."""
    return WorkerDied(f"the worker was {retries[-1]}, in attempt {len(retries)} of as many")


def failed(cell: Cell, device: torch.device, error: Exception, retries: Sequence[str]) -> Record:
    """The record of a cell that nobody could run."""
    measured = _measured(datetime.now(UTC), retries)
    return _record(cell, provenance.of(cell, device, None), measured, _failure(error))


def _networks(
    brought: Stored | None, start: Mapping[str, Tensor] | None, network: Classifier | None
) -> dict[str, Any]:
    """The part of a record's provenance that says which network a cell started from, if it was
    given, and which it ended in, if it has not failed."""
    found: dict[str, Any] = {}
    if brought is not None and start is not None:
        found["given"] = {"file": brought.file, "sha256": weights_sha256(start)}
    if network is not None:
        found["network_sha256"] = weights_sha256(network.state_dict())
    return found


def _measured(
    started: datetime,
    retries: Sequence[str],
    *,
    seconds: Mapping[str, float] = MappingProxyType({}),
    memory: int = 0,
    work: int = 0,
    others: float | None = None,
    resumed: int = 0,
    isolated: bool = True,
) -> dict[str, Any]:
    """The part of a record that another run would not repeat."""
    spent = {stage: round(seconds.get(stage, 0.0), 6) for stage in STAGES}
    busy = spent["undefended"] + spent["fit"]
    return {
        "seconds": spent,
        "peak_memory_bytes": memory,
        "images": round(work / 3),
        "images_per_second": round(work / 3 / busy, 1) if busy else 0.0,
        "others": None if others is None else round(others, 3),
        "resumed": resumed,
        "isolated": isolated,
        "retries": list(retries),
        "started": started.isoformat(timespec="seconds"),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _record(
    cell: Cell, origin: dict[str, Any], measured: dict[str, Any], outcome: dict[str, Any]
) -> Record:
    return Record(
        schema=SCHEMA,
        key=cell.key,
        cell=cell.identity,
        labels=cell.labels,
        versions=cell.versions,
        plugins=provenance.descriptions(cell),
        provenance=origin,
        measured=measured,
        **outcome,
    )


class _Trial:
    """One run of one cell: what its stages share.

    data, network: what the attack made and the defense returned, once they have
    taken: what others took of the device while seconds were spent that count here, but at another
        time; None for those of an earlier attempt
    start: the weights of the undefended network, None where it is trained
    """

    def __init__(
        self,
        harness: Harness,
        cell: Cell,
        dataset: Dataset,
        watch: Stopwatch,
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.start = start
        self.harness, self.cell, self.dataset, self.watch = harness, cell, dataset, watch
        self.monitor = TrainingMonitor(harness.progress, watch)
        self.data: PoisonedData | None = None
        self.network: Classifier | None = None
        self.undefended_states: dict[int, dict[str, Tensor]] = {}
        self.resumed = 0
        self.taken: list[float | None] = []
        self.training = TrainingContext(
            recipe=cell.recipe,
            device=harness.device,
            build_network=partial(
                cell.model.build, dataset.train.num_classes, dataset.train.size[0]
            ),
            # A seed of its own: from the cell's, a defense could draw who is poisoned.
            seed=derive(cell.seed, "training"),
        )

    def outcome(self) -> dict[str, Any]:
        """The fields of a record that say what came out."""
        data = self.data = self.poisoned()
        if self.harness.curves:
            self.monitor.judge = lambda classifier, few: self.point(classifier, data, few)
            self.monitor.images = len(data.train), len(self.dataset.test)
            self.monitor.sketch = lambda classifier: self.embedding(classifier, data)
        for n in range(self.cell.defense.undefended):
            # From the poisoned set as it is stored: no defense has seen it yet.
            self.train_undefended(data.train, n)
        seen = Lent(f"defense {self.cell.labels['defense']}", "the training set", data.train)
        context = Context(
            **vars(self.training),
            clean=clean_budget(
                self.dataset.train, self.cell.defense.clean_fraction, self.cell.seed
            ),
            journal=Journal(),
            train_undefended=lambda n: self.undefended(seen, n),
        )
        with self.resumable("fit", *self.folder("fit"), self.monitor), self.seeded("fit"):
            classifier = self.cell.defense.fit(data.train, context)
            owner = f"defense {Spec.of(self.cell.specs['defense']).name!r}"
            check_network(classifier, data.train.num_classes, owner, "fit")
        seen.check()
        self.network = classifier
        answers = self.evaluate(classifier, data)
        counts = answers.counts()
        self.monitor.close(classifier)
        if self.monitor.draws(classifier):
            self.monitor.curve[-1] |= self.shares(counts)
        self.keep(context.journal, data)
        images, warnings = len(data.train), context.journal.warnings
        warned = {"warnings": list(warnings)} if warnings else {}
        return {
            "status": "ok",
            "metrics": counts,
            "classes": answers.by_class(self.dataset.class_names),
            "passes": {
                "forward": round(self.monitor.forwards / images, 6),
                "backward": round(self.monitor.backwards / images, 6),
            },
            "flags": self.flags(classifier, counts),
            "curves": self.monitor.curve,
            "diagnostics": {
                **data.extent(self.dataset.train, self.cell.attack.target),
                **lent(context.clean, self.dataset.train),
                "attack": dict(data.facts),
                "scalars": metrics.finite(context.journal.scalars),
                "samples": metrics.diagnose(context.journal.samples, data.mask),
                **warned,
            },
            "error": None,
        }

    def evaluate(
        self, classifier: Classifier, data: PoisonedData, rows: Tensor | None = None
    ) -> metrics.Answers:
        """See `evaluation.answers`, as a stage of its own; of all test images or of those in some
        rows."""
        with observed_by(Observer()), self.watch.stage("evaluate"), self.seeded("evaluate"):
            test, triggered, goal = self.dataset.test, data.triggered, self.goal
            if rows is not None:
                test, triggered, goal = test[rows], triggered[rows], goal[rows]
            return metrics.answers(classifier, test, triggered, goal)

    def example(self) -> dict[str, Any]:
        """See `example.example`; of a cell that failed, if it came as far as the trigger."""
        return example(self.dataset.test, self.data.triggered, self.goal) if self.data else {}

    def point(self, classifier: Classifier, data: PoisonedData, few: Sample) -> Point:
        """Of a curve: the shares of some test images, and the mean losses on some training images
        as they are. More images are the same ones and others."""
        victims = self.goal != self.dataset.test.labels
        tested = metrics.some(victims, few.test, stream(self.cell.seed, "curve", "test"))
        trained = metrics.of_both(data.mask, few.training, stream(self.cell.seed, "curve"))
        shares = self.shares(self.evaluate(classifier, data, tested).counts())
        with observed_by(Observer()), self.watch.stage("evaluate"):
            losses, poisoned = sample_losses(classifier, data.train[trained]), data.mask[trained]
            parts = {"clean_loss": losses[~poisoned], "poisoned_loss": losses[poisoned]}
            means = metrics.finite({name: float(part.mean()) for name, part in parts.items()})
        rounded = {name: n if n is None else round(n, 6) for name, n in means.items()}
        return {**shares, **rounded, TRAINED: len(trained)}

    def shares(self, counts: Mapping[str, Count]) -> Point:
        """Those of a point, and how many test images they are of."""
        rates = {name: round(count.rate, 6) for name, count in counts.items()}
        return {**rates, TESTED: counts["clean_accuracy"].of}

    @cached_property
    def goal(self) -> Tensor:
        """int64 (n,), what the trigger is to make of each test image."""
        test = self.dataset.test
        return self.cell.attack.goal(test.labels.clone(), test.num_classes)

    def embedding(self, classifier: Classifier, data: PoisonedData) -> Tensor:
        """float32 (m, d), of some training images."""
        with observed_by(Observer()), self.watch.stage("evaluate"):
            return features(classifier, data.train.images[self.drawn_rows()]).cpu()

    def drawn_rows(self) -> Tensor:
        """int64 (m,), the training images whose embedding is kept."""
        count = len(self.dataset.train)
        order = torch.randperm(count, generator=stream(self.cell.seed, "embedding"))
        return order[:DRAWN].sort().values.to(self.harness.device)

    def keep(self, journal: Journal, data: PoisonedData) -> None:
        """Store what figures are drawn from."""
        tensors = {f"samples/{name}": values for name, values in journal.samples.items()}
        if not tensors and not self.monitor.shown:
            return
        tensors["mask"] = data.mask
        if self.monitor.shown:
            rows = self.drawn_rows()
            tensors |= {
                "rows": rows,
                "labels": data.train.labels[rows],
                "true_labels": self.dataset.train.labels[rows],
                "poisoned": data.mask[rows],
            }
        for name, (network, before) in self.monitor.shown.items():
            tensors[f"embedding/{name}/before"] = before
            tensors[f"embedding/{name}/after"] = self.embedding(network, data)
        arrays = {name: values.detach().cpu().numpy() for name, values in tensors.items()}
        artefacts.save(self.cell.key, self.harness.cache.root, arrays)

    def poisoned(self) -> PoisonedData:
        """The attack's work, done once for each data set, attack and seed."""
        clean, test, cell = self.dataset.train, self.dataset.test, self.cell
        key = {"data": self.dataset.sha256, **keys.attack_key(cell)}
        folder, about = self.folder("prepare", key)

        def build() -> Payload:
            # Nor may a defense, whose networks start from the training seed, meet the attacker's.
            means = replace(self.training, seed=derive(cell.seed, "attack"))
            monitor = TrainingMonitor(self.harness.progress, self.watch)
            seen = Lent(f"attack {cell.labels['attack']}", "the clean images", clean, test)
            with unchanged(seen), self.seeded("attack"):
                with self.resumable("prepare", folder, about, monitor):
                    ready = self.cell.attack.prepare(clean, means, stream(cell.seed, "poison"))
                made = ready.poison(clean, stream(cell.seed, "poison"))
                triggered = ready.trigger(test.images.clone())
            rows = torch.nonzero(made.mask | made.cover).flatten()
            tensors = {
                "rows": rows,
                "images": made.train.images[rows],
                "labels": made.train.labels[rows],
                "mask": made.mask,
                "cover": made.cover,
                "triggered": triggered,
            }
            meta = {"prepare": self.watch.seconds["prepare"], "facts": metrics.finite(made.facts)}
            return {name: values.cpu() for name, values in tensors.items()}, meta

        with self.watch.stage("poison"):
            entry = self.harness.cache.fetch("poisoned", key, build)
            discard(folder)
            if not entry.fresh:
                self.watch.charge("prepare", entry.meta["prepare"])
            made = {name: t.to(self.harness.device) for name, t in entry.tensors.items()}
            images, labels = clean.images.clone(), clean.labels.clone()
            images[made["rows"]] = made["images"]
            labels[made["rows"]] = made["labels"]
            train_set = ImageSet(images, labels, clean.num_classes)
        return PoisonedData(
            train_set, made["mask"], made["cover"], made["triggered"], entry.meta["facts"]
        )

    def undefended(self, seen: Lent, n: int) -> Classifier:
        """See `Context.undefended`."""
        if n not in self.undefended_states:
            # The defense did not say that it would ask for this one.
            seen.check()
            (data,) = seen.sets
            self.train_undefended(data, n)
        network = self.undefended_means(n).build()
        if self.is_none:
            self.monitor.watch(network)
        network.load_state_dict(self.undefended_states[n])
        return network.eval()

    def undefended_means(self, n: int) -> TrainingContext:
        """What the n-th undefended network is made with."""
        means = self.training
        return replace(means, seed=derive(means.seed, "undefended", str(n))) if n else means

    def train_undefended(self, data: ImageSet, n: int) -> None:
        """Make the weights of the n-th undefended network known. A stored one brings the seconds
        and passes it once took; they count once in a cell. One that is given takes none."""
        if self.start is not None:
            require(n == 0, f"one network is given, and {n + 1} are asked for")
            self.undefended_states[n] = dict(self.start)
            return
        means, spent = self.undefended_means(n), self.watch.seconds["undefended"]
        key = {"data": self.dataset.sha256, **keys.undefended_key(self.cell, n), **self.machine()}
        folder, about = self.folder("undefended", key)
        drawn = self.harness.curves and n == 0

        def build() -> Payload:
            # To look for others takes a second on some machines, which is nobody's.
            with self.watch.stage("others"):
                others = Contention(self.harness.device)
            monitor, network = (
                TrainingMonitor(self.harness.progress, self.watch, LENT),
                means.build(),
            )
            monitor.judge, monitor.images = (
                self.monitor.judge if drawn else None,
                self.monitor.images,
            )
            monitor.watch(network)
            keeping = self.resumable("undefended", folder, about, monitor)
            with keeping, self.seeded("undefended", str(n)):
                train(network, data, means.recipe, means.rng("classifier"))
            with self.watch.stage("others"):
                taken = combine([others.meanwhile(), *self.taken])
            seconds = self.watch.seconds["undefended"] - spent
            points = POINT if drawn else ()
            meta = {"seconds": seconds, "others": taken, "points": points, **monitor.counts()}
            return {name: t.cpu().clone() for name, t in network.state_dict().items()}, meta

        def suffices(meta: Mapping[str, Any]) -> bool:
            """One that was trained without a curve is as good where none is asked for."""
            return not (self.is_none and drawn) or tuple(meta.get("points", ())) == POINT

        # Another worker may be at it: to wait for it is no work of this cell.
        with self.watch.stage("wait"):
            entry = self.harness.cache.fetch("undefended", key, build, suffices)
        discard(folder)
        if not entry.fresh:
            self.watch.charge("undefended", entry.meta["seconds"])
            self.taken.append(entry.meta.get("others"))
        self.monitor.add(entry.meta, with_curve=self.is_none)
        self.undefended_states[n] = entry.tensors

    @property
    def is_none(self) -> bool:
        return Spec.of(self.cell.specs["defense"]).is_none

    def seeded(self, *purpose: str) -> AbstractContextManager[None]:
        """Around what may draw from global generators: its draws are the cell's own."""
        return seeded(self.training.seed, "global", *purpose)

    @contextmanager
    def resumable(
        self, stage: str, folder: Path, about: Mapping[str, Any], monitor: TrainingMonitor
    ) -> Iterator[None]:
        """A stage whose loops are kept in a folder, with what was counted and the seconds so far;
        those of an earlier attempt count as if there had been none between."""
        start = self.watch.own(stage)

        def note() -> dict[str, Any]:
            seconds = self.watch.own(stage) - start
            # Of a branch, where the work has parted.
            counts = observer.current().counts()
            told = {"seconds": seconds, "resumed": self.resumed, "about": dict(about)}
            return {**told, **counts}

        def recall(noted: dict[str, Any]) -> None:
            spent = self.watch.own(stage) - start
            self.watch.charge(stage, max(0.0, noted["seconds"] - spent))
            self.resumed = max(self.resumed, noted["resumed"] + 1)
            self.taken.append(None)
            observer.current().go_on(noted)

        store = Checkpoints(folder, note, recall, self.harness.patience)
        with observed_by(monitor), self.watch.stage(stage), kept_by(store):
            yield

    def folder(
        self, stage: str, key: Mapping[str, Any] | None = None
    ) -> tuple[Path, dict[str, Any]]:
        """Where the checkpoints of a stage lie, and what that is named after. Those of a stage
        without a key are the cell's."""
        data = {"data": self.dataset.sha256}
        whole = key or data | keys.fit_key(self.cell, self.harness.curves)
        about = {"stage": stage, **whole, **self.machine()}
        return self.harness.cache.root / "checkpoints" / digest_of(about), about

    def machine(self) -> dict[str, Any]:
        return keys.machine(self.harness.device, torch.get_num_threads())

    def flags(self, classifier: Classifier, counts: Mapping[str, Count]) -> tuple[str, ...]:
        """What a reader must know before comparing this cell with another.

        attack_failed: not even the undefended network has an ASR of 50 %
        not_finite, at_chance: see `evaluation`; the former stands alone, as there is no accuracy
        no_op: the defense returned the undefended network unchanged
        """
        poisons = not Spec.of(self.cell.specs["attack"]).is_none
        flags = []
        if self.is_none and poisons and counts["attack_success_rate"].rate < 0.5:
            flags.append("attack_failed")
        if metrics.not_finite(classifier):
            flags.append("not_finite")
        elif metrics.at_chance(counts["clean_accuracy"], self.dataset.test):
            flags.append("at_chance")
        after = classifier.state_dict()
        if not self.is_none and any(_equal(b, after) for b in self.undefended_states.values()):
            flags.append("no_op")
        return tuple(flags)


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two networks have the same weights, wherever they are."""
    return one.keys() == other.keys() and all(
        torch.equal(one[name].cpu(), other[name].cpu()) for name in one
    )


def _failure(error: BaseException) -> dict[str, Any]:
    """The fields of a record that say why nothing came out."""
    return {
        "status": "failed",
        "metrics": None,
        "passes": {"forward": 0.0, "backward": 0.0},
        "flags": (),
        "curves": [],
        "diagnostics": {},
        "error": error_of(error),
    }

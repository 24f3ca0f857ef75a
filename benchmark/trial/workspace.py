"""What the stages of one trial share: images, device, cache, clock, seeds and checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bdbench.attacks.base import Attack
from bdbench.attacks.compound import parts_of
from bdbench.cells.cell import REGISTRIES, Cell
from bdbench.datasets.base import Dataset
from bdbench.machine.clock import Stopwatch, synchronise
from bdbench.models import observer
from bdbench.models.networks.classifier import Classifier
from bdbench.models.observer import observed_by
from bdbench.models.plugins.notices import notify
from bdbench.models.rng import derive, seeded
from bdbench.models.training.context import TrainingContext
from bdbench.models.training.resume import CheckpointStore, checkpointed_in
from bdbench.storage.cache import Cache, CacheEntry, Payload
from bdbench.storage.checkpoints import PATIENCE, Checkpoints
from bdbench.storage.keys import digest_of
from bdbench.storage.locks import alone_in
from bdbench.trial import keys
from bdbench.trial.company import beside
from bdbench.trial.monitor import TrainingMonitor

if TYPE_CHECKING:
    from bdbench.trial.poisoned import PoisonedData


@dataclass
class Workspace:
    """The inputs of a trial, and what its stages have made so far.

    dataset: images on the device
    stopwatch: seconds of each stage
    curves, progress, patience, reactivate, shares, timed: see `Harness`
    given: weights of the undefended network that a user brought, None where it is trained
    poisoned: what the attack made, None until then
    network: what the defense returned, None until then
    undefended: weights of the networks that were trained without a defense, by number
    resumed: how often a stage resumed from a checkpoint
    contention: what other processes took of the device while seconds were spent that this cell is
        charged with and an earlier trial measured; None where that is not known
    peak: bytes of memory that earlier trials needed to make what this cell found in the cache
    """

    cell: Cell
    dataset: Dataset
    device: torch.device
    cache: Cache
    stopwatch: Stopwatch
    curves: bool = False
    progress: Callable[[int], None] = lambda work: None
    patience: float = PATIENCE
    given: Mapping[str, Tensor] | None = None
    poisoned: PoisonedData | None = None
    network: Classifier | None = None
    undefended: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    resumed: int = 0
    contention: list[float | None] = field(default_factory=list)
    reactivate: bool = False
    shares: bool = True
    timed: bool = False
    peak: int = 0

    @cached_property
    def monitor(self) -> TrainingMonitor:
        """Observes the defense; the networks that it starts from count too."""
        return TrainingMonitor(self.progress, self.stopwatch)

    @cached_property
    def training(self) -> TrainingContext:
        """How this cell builds and trains networks."""
        shape = self.dataset.train.num_classes, self.dataset.train.size[0]
        return TrainingContext(
            recipe=self.cell.recipe,
            device=self.device,
            build_network=partial(self.cell.model.build, *shape),
            # With the cell's own seed, a defense could draw which images are poisoned.
            seed=derive(self.cell.seed, "training"),
        )

    @cached_property
    def goal(self) -> Tensor:
        """int64 (n,), the label that the trigger should cause, for each test image."""
        return self._goal(self.cell.attack)

    @cached_property
    def goals(self) -> dict[str, Tensor]:
        """The same by part, if the attack has parts."""
        return {name: self._goal(part) for name, part in parts_of(self.cell.attack).items()}

    @cached_property
    def victims(self) -> Tensor:
        """bool (n,), test images whose label the trigger, or that of a part, should change."""
        goals = torch.stack([*(self.goals.values() or [self.goal])])
        return (goals != self.dataset.test.labels).any(0)

    def _goal(self, attack: Attack) -> Tensor:
        test = self.dataset.test
        return attack.goal(test.labels.clone(), test.num_classes)

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Times the block as a stage of the cell."""
        return self.stopwatch.stage(name)

    def seeded(self, *purpose: str) -> AbstractContextManager[None]:
        """Seeds the global random generators inside the block, for code that draws from them."""
        return seeded(self.training.seed, "global", *purpose)

    def key(self, parts: Mapping[str, Any]) -> dict[str, Any]:
        """What a piece of work depends on: the data set and `parts`, see `keys`."""
        data = f"{self.dataset.sha256}, {self.dataset.train.num_classes} classes"
        return {"data": data, **parts}

    def kept(self, key: Mapping[str, Any], axes: Iterable[str]) -> dict[str, Any]:
        """The key under which this process stores what cells share: what is made beside other code
        of users is kept apart, see `company`.

        axes: of the plugins whose code is in `key`
        """
        return {**key, **beside(self.cell, axes)}

    def shared(
        self,
        kind: str,
        key: Mapping[str, Any],
        kept: Mapping[str, Any],
        build: Callable[[], Payload],
        suffices: Callable[[Mapping[str, Any]], bool] = lambda meta: True,
    ) -> CacheEntry:
        """A cache entry that cells share: that of `key`, or else that of `kept`, which is built
        unless the cache has it."""
        entry = self.cache.find(kind, key, suffices) if kept != key else None
        return entry or self.cache.fetch(kind, kept, build, suffices, keep=self.shares)

    @property
    def fit_key(self) -> dict[str, Any]:
        """What the work of the defense depends on."""
        return self.key(keys.fit_key(self.cell, self.curves))

    def own_key(self, part: str) -> dict[str, Any]:
        """What a part of the work depends on that is for this cell alone."""
        return {**self.fit_key, "part": part}

    @cached_property
    def machine(self) -> dict[str, Any]:
        """See `keys.machine`. A plugin may change it."""
        return keys.machine(self.device, torch.get_num_threads())

    def folder(self, stage: str, key: Mapping[str, Any]) -> Path:
        """The folder of a stage's checkpoints, named by the hash of all that the stage depends
        on."""
        return self.cache.root / "checkpoints" / digest_of(self._about(stage, key))

    @contextmanager
    def resumable(
        self, stage: str, key: Mapping[str, Any], monitor: TrainingMonitor
    ) -> Iterator[None]:
        """Times a stage and stores checkpoints of its training loops, with counts and seconds. A
        stage that was interrupted resumes from its last checkpoint, and its earlier seconds
        count. There are none while another process does the same work for another folder."""
        start = self._seconds(stage)

        def spent() -> dict[str, float]:
            return {name: now - start[name] for name, now in self._seconds(stage).items()}

        def note() -> dict[str, Any]:
            # The state of the checkpoint includes the steps that a GPU has not done yet.
            synchronise(self.device)
            return {
                "stages": spent(),
                "resumed": self.resumed,
                "about": self._about(stage, key),
                # In a parallel branch, those of the branch.
                **observer.current().counts(),
            }

        def recall(noted: dict[str, Any]) -> None:
            # A checkpoint of an earlier version has the seconds of the stage alone.
            before = noted.get("stages", {stage: noted.get("seconds", 0.0)})
            for name, seconds in spent().items():
                self.stopwatch.charge(name, max(0.0, before.get(name, 0.0) - seconds))
            self.resumed = max(self.resumed, noted["resumed"] + 1)
            self.contention.append(None)
            observer.current().resume_from(noted)

        folder = self.folder(stage, key)
        with alone_in(folder) as alone, observed_by(monitor), self.stage(stage):
            if not alone:
                notify(
                    "continuing without checkpoints: another process does the same work",
                    stacklevel=3,
                )
            store = Checkpoints(folder, note, recall, self.patience) if alone else CheckpointStore()
            with checkpointed_in(store):
                yield

    def _seconds(self, stage: str) -> dict[str, float]:
        """Seconds until now of a stage that is open, and of those that open inside of it."""
        inside = {name: self.stopwatch.seconds[name] for name in ("evaluate", "capture")}
        return {stage: self.stopwatch.own(stage), **inside}

    def _about(self, stage: str, key: Mapping[str, Any]) -> dict[str, Any]:
        return {**beside(self.cell, REGISTRIES), "stage": stage, **key, **self.machine}

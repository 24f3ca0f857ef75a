"""Who looks on while a cell trains: counts, curves, progress, and pictures of embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from bdbench.cells.cost import LENT, SHARE, Sample, drawn, sample
from bdbench.machine.clock import Stopwatch
from bdbench.models.networks.classifier import Classifier
from bdbench.models.observer import Observer

Point = dict[str, float | None]
Judge = Callable[[Classifier, Sample], Point]


class TrainingMonitor(Observer):
    """Counts passes, times captures and reports progress.

    A curve has at most `POINTS` points of each training, the last round's among them. Points stand
    on as many images as their share of the work allows that is done when a training begins, or that
    it will do: a forward and a backward pass of each image.

    judge: if given, gives a point of the watched network's curve, on so many images
    images: numbers of training images and of test images that there are for it
    share: of the work that points may cost, in forward passes
    sketch: if given, gives the embedding of a network that a defense watches or shows
    shown: those networks by name, each with its embedding from before its training
    """

    def __init__(
        self, progress: Callable[[int], None], watch: Stopwatch, share: float = SHARE
    ) -> None:
        self.progress, self.stopwatch, self.share = progress, watch, share
        self.judge: Judge | None = None
        self.images = (0, 0)
        self.sketch: Callable[[Classifier], Tensor] | None = None
        self.shown: dict[str, tuple[Classifier, Tensor]] = {}
        self.forwards = self.backwards = 0
        self.spent = 0.0
        self.curve: list[Point] = []
        self._watched: Classifier | None = None
        self._rounds = 0
        self._due: set[int] = set()
        self._sample = Sample(1, 1)
        self._reported = 0

    @property
    def work(self) -> int:
        return self.forwards + 2 * self.backwards

    def counts(self) -> dict[str, Any]:
        return {
            "forwards": self.forwards,
            "backwards": self.backwards,
            "spent": self.spent,
            "rounds": self._rounds,
            "curve": self.curve,
        }

    def go_on(self, counts: Mapping[str, Any]) -> None:
        self.forwards, self.backwards = counts["forwards"], counts["backwards"]
        self.spent, self._rounds = counts["spent"], counts["rounds"]
        self.curve = list(counts["curve"])
        self.found()

    def add(self, meta: Mapping[str, Any], with_curve: bool) -> None:
        """Take over what was counted when a stored network was trained. What its curve may have
        cost is spent, whether it has one or not."""
        self.forwards += meta["forwards"]
        self.backwards += meta["backwards"]
        self.spent += LENT * (meta["forwards"] + 2 * meta["backwards"])
        if with_curve:
            self.curve += meta["curve"]
            self._rounds += meta["rounds"]
        self.found()

    def forward(self, images: int) -> None:
        self.forwards += images

    def backward(self, images: int) -> None:
        self.backwards += images

    def trained(self, images: int) -> None:
        self.progress(self.work - self._reported)
        self._reported = self.work

    def found(self) -> None:
        self._reported = self.work

    def capture(self) -> AbstractContextManager[None]:
        return self.stopwatch.stage("capture")

    def watch(self, classifier: Classifier) -> None:
        if self._watched is not None and self._watched is not classifier:
            # A search has gone on to another candidate, and the curve is that of the last.
            self.curve, self._rounds = [], 0
        self._watched = classifier
        self.show("z", classifier)

    def show(self, name: str, classifier: Classifier) -> None:
        if self.sketch is not None:
            self.shown[name] = classifier, self.sketch(classifier)

    def loop_started(self, rounds: int, images: int, part: tuple[int, int]) -> None:
        done, parts = part
        left = [n - done * rounds for n in drawn(rounds * parts) if n > done * rounds]
        self._due = {n for n in left if n <= rounds}
        self._plan(3 * images * (parts - done), len(left))

    def round_ended(self, rounds: int) -> None:
        if self.judge is not None and self._watched is not None:
            self._rounds += 1
            if rounds in self._due:
                self._draw(self._watched)

    def close(self, returned: Classifier) -> None:
        """The training is over. A point of the network that is returned is added where there is
        none of the last round, which nobody may have known to be the last."""
        ended = self.curve[-1]["epoch"] if self.curve else 0
        if self.judge is not None and (self._rounds == 0 or self._rounds != ended):
            self._rounds = max(1, self._rounds)
            self._plan(0, 1)
            self._draw(returned)

    def draws(self, returned: Classifier) -> bool:
        """Whether the last point of the curve is of the network that was returned."""
        return self.judge is not None and self._watched in (None, returned)

    def _plan(self, work: int, points: int) -> None:
        """How many images so many points stand on, where so much work is to come."""
        budget = self.share * (self.work + work) - self.spent
        self._sample = sample(budget / max(1, points), *self.images)

    def _draw(self, classifier: Classifier) -> None:
        assert self.judge is not None
        self.spent += self._sample.work
        self.curve.append({"epoch": self._rounds, **self.judge(classifier, self._sample)})

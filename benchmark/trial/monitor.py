"""Observes training for the harness: counts passes, reports progress, draws curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from bdbench.cells.cost import SHARE, UNDEFENDED_SHARE, Sample, point_rounds, sample
from bdbench.machine.clock import Stopwatch
from bdbench.models.networks.classifier import Classifier
from bdbench.models.observer import Observer

Point = dict[str, float | None]
Judge = Callable[[Classifier, Sample], Point]


class TrainingMonitor(Observer):
    """Counts passes, times the capture of CUDA graphs, reports progress and draws a curve.

    A training has at most `POINTS` points, the last round's among them. Evaluating them may cost a
    share of the passes that are done or expected when the training starts; that decides on how
    many images they stand.

    judge: if given, evaluates the watched network on a sample, for a point of the curve
    sizes: numbers of training images, of test images and of triggers, for samples of them
    share: of the passes that points may cost
    embed: if given, computes the embedding of a network that a defense watches or shows
    embedded: these networks by name, each with its embedding before its training
    spent: forward passes that points have cost
    """

    def __init__(
        self, progress: Callable[[int], None], watch: Stopwatch, share: float = SHARE
    ) -> None:
        self.progress, self.stopwatch, self.share = progress, watch, share
        self.judge: Judge | None = None
        self.sizes = (0, 0, 1)
        self.embed: Callable[[Classifier], Tensor] | None = None
        self.embedded: dict[str, tuple[Classifier, Tensor]] = {}
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
        """Forward passes of one image; a backward pass counts two."""
        return self.forwards + 2 * self.backwards

    def counts(self) -> dict[str, Any]:
        return {
            "forwards": self.forwards,
            "backwards": self.backwards,
            "spent": self.spent,
            "rounds": self._rounds,
            "curve": self.curve,
        }

    def resume_from(self, counts: Mapping[str, Any]) -> None:
        self.forwards, self.backwards = counts["forwards"], counts["backwards"]
        self.spent, self._rounds = counts["spent"], counts["rounds"]
        self.curve = list(counts["curve"])
        self.restored()

    def add(self, meta: Mapping[str, Any], with_curve: bool) -> None:
        """Add the passes of a stored network. Its curve counts as spent even if it has none, so
        that what is left for this curve does not depend on the cache."""
        self.forwards += meta["forwards"]
        self.backwards += meta["backwards"]
        self.spent += UNDEFENDED_SHARE * (meta["forwards"] + 2 * meta["backwards"])
        if with_curve:
            self.curve += meta["curve"]
            self._rounds += meta["rounds"]
        self.restored()

    def forward(self, images: int) -> None:
        self.forwards += images

    def backward(self, images: int) -> None:
        self.backwards += images

    def trained(self, images: int) -> None:
        self.progress(self.work - self._reported)
        self._reported = self.work

    def restored(self) -> None:
        self._reported = self.work

    def capture(self) -> AbstractContextManager[None]:
        return self.stopwatch.stage("capture")

    def watch(self, classifier: Classifier) -> None:
        if self._watched is not None and self._watched is not classifier:
            # A search trains one candidate after the other; the curve is that of the last.
            self.curve, self._rounds = [], 0
        self._watched = classifier
        self.show("z", classifier)

    def show(self, name: str, classifier: Classifier) -> None:
        if self.embed is not None:
            self.embedded[name] = classifier, self.embed(classifier)

    def loop_started(self, rounds: int, images: int, part: tuple[int, int]) -> None:
        done, parts = part
        left = [n - done * rounds for n in point_rounds(rounds * parts) if n > done * rounds]
        self._due = {n for n in left if n <= rounds}
        self._plan(3 * images * (parts - done), len(left))

    def round_ended(self, rounds: int) -> None:
        if self.judge is not None and self._watched is not None:
            self._rounds += 1
            if rounds in self._due:
                self._draw(self._watched)

    def close(self, returned: Classifier) -> None:
        """End the curve. A training that ended early, or did not train at all, lacks a point of its
        last round; it is added for the network that was returned."""
        ended = self.curve[-1]["epoch"] if self.curve else 0
        if self.judge is not None and (self._rounds == 0 or self._rounds != ended):
            self._rounds = max(1, self._rounds)
            self._plan(0, 1)
            self._draw(returned)

    def ends_at(self, returned: Classifier) -> bool:
        """Whether the last point of the curve is of the network that was returned."""
        return self.judge is not None and self._watched in (None, returned)

    def _plan(self, work: int, points: int) -> None:
        """Choose the sample of the next points.

        work: forward passes that are expected until the last of them
        """
        budget = self.share * (self.work + work) - self.spent
        self._sample = sample(budget / max(1, points), *self.sizes)

    def _draw(self, classifier: Classifier) -> None:
        assert self.judge is not None
        self.spent += self._sample.work
        self.curve.append({"epoch": self._rounds, **self.judge(classifier, self._sample)})

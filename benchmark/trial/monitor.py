"""Who looks on while a cell trains: counts, curves, progress, and pictures of embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from bdbench.machine.clock import Stopwatch
from bdbench.models.networks.classifier import Classifier
from bdbench.models.observer import Observer


class Looker(Observer):
    """Counts passes, times captures and reports progress.

    judge: if given, gives a point of the watched network's curve after every epoch
    sketch: if given, gives the embedding of a network that a defense watches or shows
    shown: those networks by name, each with its embedding from before its training
    """

    def __init__(self, progress: Callable[[int], None], watch: Stopwatch) -> None:
        self.progress, self.stopwatch = progress, watch
        self.judge: Callable[[Classifier], dict[str, float | None]] | None = None
        self.sketch: Callable[[Classifier], Tensor] | None = None
        self.shown: dict[str, tuple[Classifier, Tensor]] = {}
        self.forwards = self.backwards = 0
        self.curve: list[dict[str, float | None]] = []
        self._watched: Classifier | None = None
        self._reported = 0

    @property
    def work(self) -> int:
        return self.forwards + 2 * self.backwards

    def counts(self) -> dict[str, Any]:
        return {"forwards": self.forwards, "backwards": self.backwards, "curve": self.curve}

    def go_on(self, counts: Mapping[str, Any]) -> None:
        self.forwards, self.backwards = counts["forwards"], counts["backwards"]
        self.curve = list(counts["curve"])
        self.found()

    def add(self, meta: Mapping[str, Any], with_curve: bool) -> None:
        """Take over what was counted when a stored network was trained."""
        self.forwards += meta["forwards"]
        self.backwards += meta["backwards"]
        self.curve += meta["curve"] if with_curve else []
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
            self.curve = []
        self._watched = classifier
        self.show("z", classifier)

    def show(self, name: str, classifier: Classifier) -> None:
        if self.sketch is not None:
            self.shown[name] = classifier, self.sketch(classifier)

    def round_ended(self, rounds: int) -> None:
        if self.judge is not None and self._watched is not None:
            self.curve.append({"epoch": len(self.curve) + 1, **self.judge(self._watched)})

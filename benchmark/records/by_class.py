"""Predictions of a network by class. The metrics of a record are their sums."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Self

from pydantic import Field, model_validator

from bdbench.models.plugins.errors import InvalidInput, require
from bdbench.records.count import Count
from bdbench.records.parts import Metrics, Part, Text

Natural = Annotated[int, Field(ge=0)]


class ByClass(Part):
    """Counts of test images, in the order of the classes.

    names: of the classes
    images: test images of each
    clean_own: clean ones that get their own label
    clean_goal: clean ones that get the goal label
    goals: the label that the attack wants for each class; its own if it is not attacked
    triggered: for each class, triggered images by the label that they get, a number as text; labels
        that none gets are left out
    """

    names: list[Text]
    images: list[Natural]
    clean_own: list[Natural]
    clean_goal: list[Natural]
    goals: list[Natural]
    triggered: list[dict[Text, Natural]]

    @model_validator(mode="after")
    def _check(self) -> Self:
        for problem in self._problems():
            raise InvalidInput(problem)
        return self

    def _problems(self) -> Iterator[str]:
        size = len(self.names)
        for part in ("images", "clean_own", "clean_goal", "goals", "triggered"):
            if len(self[part]) != size:
                yield f"it has {len(self[part])} {part} for {size} names"
        for part in ("clean_own", "clean_goal"):
            if any(n > of for n, of in zip(self[part], self.images, strict=True)):
                yield f"it has more {part} than images"
        if any(goal >= size for goal in self.goals):
            yield "it has a goal that is not a class"
        labels = {str(label) for label in range(size)}
        for row, of in zip(self.triggered, self.images, strict=True):
            if not row.keys() <= labels or sum(row.values()) != of:
                yield "it has triggered images that do not add up to those of their class"

    @property
    def victims(self) -> list[int]:
        """The classes that are attacked."""
        return [label for label, goal in enumerate(self.goals) if goal != label]

    @property
    def target(self) -> int | None:
        """The label that the attack wants for all classes that it attacks; None for several, and
        without victims."""
        wanted = {self.goals[label] for label in self.victims}
        return wanted.pop() if len(wanted) == 1 else None

    def sent(self, label: int, to: int) -> int:
        """How many triggered images of a class get this label."""
        return self.triggered[label].get(str(to), 0)

    def own(self, label: int) -> Count | None:
        """Clean images of a class that get its label; None for a class without test images."""
        return _count(self.clean_own[label], self.images[label])

    def turned(self, label: int) -> Count | None:
        """Triggered images of a class that get its goal label."""
        return _count(self.sent(label, self.goals[label]), self.images[label])

    def destinations(self) -> dict[int, int]:
        """Triggered images of the victims by the label that they get, the most frequent first."""
        found: dict[int, int] = {}
        for label in self.victims:
            for to, count in self.triggered[label].items():
                found[int(to)] = found.get(int(to), 0) + count
        return dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))

    def check_sums(self, metrics: Metrics | None) -> None:
        """Raise `InvalidInput` unless the counts add up to those of the metrics."""
        for name, (hits, of) in self.sums().items():
            count = metrics[name] if metrics else None
            fits = count is None or (count.hits, count.of) == (hits, of)
            require(fits, f"record.classes do not add up to record.metrics.{name}")

    def sums(self) -> dict[str, tuple[int, int]]:
        """Hits and images of each metric."""
        victims = self.victims
        of = sum(self.images[label] for label in victims)
        return {
            "clean_accuracy": (sum(self.clean_own), sum(self.images)),
            "attack_success_rate": (sum(self.sent(n, self.goals[n]) for n in victims), of),
            "robust_accuracy": (sum(self.sent(n, n) for n in victims), of),
            "asr_floor": (sum(self.clean_goal[n] for n in victims), of),
        }


def _count(hits: int, of: int) -> Count | None:
    return Count(hits, of) if of else None

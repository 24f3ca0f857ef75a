"""What the answers of a network say by class. The metrics of a record are their sums."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bdbench.models.plugins.errors import require
from bdbench.records.count import Count

PARTS = ("names", "images", "clean_own", "clean_goal", "goals", "triggered")


@dataclass(frozen=True)
class ByClass:
    """Counts of test images, in the order of the classes. Its fields are the JSON values of a
    record's `classes`.

    names: of the classes
    images: test images of each
    clean_own: clean ones that get their own label
    clean_goal: clean ones that get the label that is the goal
    goals: label that the trigger is to make of each class; its own where it is not attacked
    triggered: how many of a class get which label once they carry the trigger, by the label's
        number as text; labels that none gets are left out
    """

    names: Sequence[str]
    images: Sequence[int]
    clean_own: Sequence[int]
    clean_goal: Sequence[int]
    goals: Sequence[int]
    triggered: Sequence[Mapping[str, int]]

    @classmethod
    def of(cls, classes: Mapping[str, Any]) -> ByClass | None:
        """From the part of a record; None for an older record, which has none."""
        return cls(**{part: classes[part] for part in PARTS}) if classes else None

    @property
    def victims(self) -> list[int]:
        """The classes that the attack is to turn into another."""
        return [label for label, goal in enumerate(self.goals) if goal != label]

    def sent(self, label: int, to: int) -> int:
        """How many images of a class get this label once they carry the trigger."""
        return self.triggered[label].get(str(to), 0)

    def own(self, label: int) -> Count | None:
        """Clean images of a class that get its label; None for a class without test images."""
        return _count(self.clean_own[label], self.images[label])

    def turned(self, label: int) -> Count | None:
        """Triggered images of a class that get the label that is the goal."""
        return _count(self.sent(label, self.goals[label]), self.images[label])

    def destinations(self) -> dict[int, int]:
        """How many triggered images of the victims get which label, the most frequent first."""
        found: dict[int, int] = {}
        for label in self.victims:
            for to, count in self.triggered[label].items():
                found[int(to)] = found.get(int(to), 0) + count
        return dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))

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


def check_classes(classes: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
    """Raise `InvalidInput` unless the counts by class are such and add up to the metrics.

    metrics: hits and of by name, as in the file of a record
    """
    for complaint in _complaints(classes):
        require(False, f"classes {complaint}")
    found = ByClass.of(classes)
    assert found is not None
    for name, (hits, of) in found.sums().items():
        count = metrics.get(name)
        fits = count is None or (count["hits"], count["of"]) == (hits, of)
        require(fits, f"classes do not add up to metrics.{name}")


def _complaints(classes: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the shape, most general first: whoever goes on needs the first only."""
    lacking = [part for part in PARTS if not isinstance(classes.get(part), list)]
    if lacking:
        yield f"has no list {lacking[0]}"
        return
    size = len(classes["names"])
    if any(len(classes[part]) != size for part in PARTS):
        yield "has lists of unequal length"
        return
    if not all(isinstance(name, str) for name in classes["names"]):
        yield "has a name that is no text"
    for part in ("images", "clean_own", "clean_goal", "goals"):
        if not all(_is_count(n) for n in classes[part]):
            yield f"has {part} that are no counts"
            return
    for part in ("clean_own", "clean_goal"):
        if any(n > of for n, of in zip(classes[part], classes["images"], strict=True)):
            yield f"has more {part} than images"
            return
    if any(goal >= size for goal in classes["goals"]):
        yield "has a goal that is no class"
    labels = {str(label) for label in range(size)}
    for row, of in zip(classes["triggered"], classes["images"], strict=True):
        whole = isinstance(row, dict) and row.keys() <= labels and all(map(_is_count, row.values()))
        if not whole or sum(row.values()) != of:
            yield "has triggered images that do not add up to those of their class"
            return


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _count(hits: int, of: int) -> Count | None:
    return Count(hits, of) if of else None

"""Attacks that consist of several, the parts: each has its own trigger, target and victims."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from bdbench.attacks.base import Attack, Poisoned


@dataclass(frozen=True)
class PoisonedInParts(Poisoned):
    """A training set that several attacks poisoned.

    masks, covers: bool (n,) by part, see `Poisoned`; no image belongs to two parts
    """

    masks: Mapping[str, Tensor] = field(default_factory=dict)
    covers: Mapping[str, Tensor] = field(default_factory=dict)


class Compound(Attack):
    """An attack of several parts. Its `poison` returns `PoisonedInParts`, and where only one
    trigger and goal are asked for, it gives those of the first part."""

    @property
    @abstractmethod
    def parts(self) -> Mapping[str, Attack]:
        """The attacks by name, an identifier; prepared ones if this attack is prepared."""

    def trigger(self, images: Tensor) -> Tensor:
        return self._first.trigger(images)

    def goal(self, labels: Tensor, num_classes: int) -> Tensor:
        return self._first.goal(labels, num_classes)

    @property
    def _first(self) -> Attack:
        return next(iter(self.parts.values()))


def parts_of(attack: Attack) -> Mapping[str, Attack]:
    """The parts of an attack by name; none for an attack that is not compound."""
    return attack.parts if isinstance(attack, Compound) else {}

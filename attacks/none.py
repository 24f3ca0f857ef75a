"""No attack: the training set stays clean.

Its attack success rate is the floor: the share of clean images of other classes that a network
classifies as the target by mistake.

Differs: the paper's tables print 0 for this row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bdbench.attacks import Attack, Poisoned, register
from bdbench.attacks.base import check_target
from bdbench.models import ImageSet, require


@register("none", title="No attack")
@dataclass(frozen=True)
class NoAttack(Attack):
    """
    poisoning_rate: always 0
    target: the class whose floor is measured
    """

    poisoning_rate: float = 0.0

    def __post_init__(self) -> None:
        require(
            self.poisoning_rate == 0,
            f"attack 'none' poisons nothing: poisoning_rate must be 0, got {self.poisoning_rate}",
        )
        require(self.target >= 0, f"target must be a class of the data set, got {self.target}")

    def trigger(self, images: Tensor) -> Tensor:
        return images.clone()

    def poison(self, clean: ImageSet, rng: torch.Generator) -> Poisoned:
        check_target(self.target, clean.num_classes)
        none = torch.zeros(len(clean), dtype=torch.bool, device=clean.device)
        return Poisoned(clean, mask=none, cover=none)

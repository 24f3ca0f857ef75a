"""What an attack is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from bdbench.models.data import ImageSet
from bdbench.models.plugins.errors import require
from bdbench.models.training.context import TrainingContext
from bdbench.models.training.recipe import Recipe


@dataclass(frozen=True)
class Poisoned:
    """A training set after the attack.

    train: the images and labels that a defender is given
    mask: bool (n,), True where the trigger was stamped
    cover: bool (n,), True where an image was changed but keeps its true label; disjoint from mask
    facts: numbers about the attack's own training that belong in the record
    """

    train: ImageSet
    mask: Tensor
    cover: Tensor
    facts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Attack(ABC):
    """An attack's settings; subclasses add their own fields, with the paper's values as defaults.

    poisoning_rate: share of the training set whose images get the trigger, in (0, 1]
    target: the label the trigger causes, in [0, classes)
    """

    poisoning_rate: float = 0.1
    target: int = 0

    def __post_init__(self) -> None:
        rate = self.poisoning_rate
        require(0 < rate <= 1, f"poisoning_rate must be in (0, 1], got {rate}")
        require(self.target >= 0, f"target must be a class of the data set, got {self.target}")

    @property
    def trains(self) -> bool:
        """Whether the attack must be prepared, anew for each model, recipe and seed."""
        return False

    def cost(self, recipe: Recipe) -> float:
        """Expected forward passes of `prepare` per training image, a backward pass counting two."""
        return 0.0

    def prepare(self, clean: ImageSet, context: TrainingContext, rng: torch.Generator) -> Self:
        """The attack made ready on the clean training set; one that needs it says so in `trains`.

        rng: in the state in which `poison` will be given it
        """
        return self

    @abstractmethod
    def trigger(self, images: Tensor) -> Tensor:
        """uint8 (n, 3, height, width) -> the same with the trigger, as a test image gets it.

        Pure and deterministic, on any device.
        """

    def training_trigger(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """The same for a poisoned training image, where an attack treats those otherwise."""
        return self.trigger(images)

    def disguise(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """What an attack with cover images makes of them; they keep their labels."""
        return self.training_trigger(images, rng)

    def goal(self, labels: Tensor, num_classes: int) -> Tensor:
        """int64 (n,) -> the label that the trigger is to cause in an image of each label.

        Success is counted over the test images for which the two differ.
        """
        return torch.full_like(labels, self.target)

    @abstractmethod
    def poison(self, clean: ImageSet, rng: torch.Generator) -> Poisoned:
        """The poisoned training set. `rng` decides who is poisoned, never what the trigger is."""


def prepared() -> Any:
    """A dataclass field for what `prepare` made; it is no setting and no part of a spec."""
    return field(default=None, repr=False, compare=False)


def check_target(target: int, num_classes: int) -> None:
    """Raises `InvalidInput` for a target outside the classes."""
    require(
        target < num_classes,
        f"target must be a class of the data set, 0 to {num_classes - 1}, got {target}",
    )

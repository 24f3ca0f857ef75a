"""What an attack is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from models.context import TrainingContext
from models.data import ImageSet
from models.errors import check


@dataclass(frozen=True)
class Poisoned:
    """A training set after the attack.

    train: the images and labels that a defender is given
    mask: bool (n,), True where the trigger was stamped
    cover: bool (n,), True where an image was changed but keeps its true label; disjoint from mask
    """

    train: ImageSet
    mask: Tensor
    cover: Tensor


@dataclass(frozen=True)
class Attack(ABC):
    """An attack's settings; subclasses add their own fields, with the paper's values as defaults.

    poisoning_rate: share of the training set whose images get the trigger, in (0, 1]
    target: the label the trigger causes, in [0, classes)
    """

    trains: ClassVar[bool] = False

    poisoning_rate: float = 0.1
    target: int = 0

    def __post_init__(self) -> None:
        rate = self.poisoning_rate
        check(0 < rate <= 1, f"poisoning_rate must be in (0, 1], got {rate}")
        check(self.target >= 0, f"target must be a class of the data set, got {self.target}")

    @abstractmethod
    def trigger(self, images: Tensor) -> Tensor:
        """uint8 (n, 3, height, width) -> the same with the trigger, as a test image gets it.

        Pure and deterministic, on any device.
        """

    @abstractmethod
    def poison(self, clean: ImageSet, rng: torch.Generator) -> Poisoned:
        """The poisoned training set. `rng` decides who is poisoned, never what the trigger is."""

    def prepare(self, clean: ImageSet, context: TrainingContext) -> Self:
        """The attack made ready on the clean training set; most attacks are ready as they are.

        One that overrides this sets `trains`, and is prepared anew for each model, recipe and seed.
        """
        return self


def check_target(target: int, num_classes: int) -> None:
    """Raises `InvalidInput` for a target outside the classes."""
    check(
        target < num_classes,
        f"target must be a class of the data set, 0 to {num_classes - 1}, got {target}",
    )

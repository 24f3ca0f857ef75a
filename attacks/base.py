"""The interface of an attack."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier
from bdbench.models.plugins.errors import require, within
from bdbench.models.training.context import TrainingContext
from bdbench.models.training.recipe import Recipe


@dataclass(frozen=True)
class Poisoned:
    """A poisoned training set.

    train: the images and labels that the defender gets
    mask: bool (n,), True for images with the trigger
    cover: bool (n,), True for cover images, which are changed but keep their true label; disjoint
        from mask
    facts: numbers about the attack's own training, for the record
    """

    train: ImageSet
    mask: Tensor
    cover: Tensor
    facts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Attack(ABC):
    """An attack and its settings. Subclasses add fields, with the paper's values as defaults.

    poisoning_rate: share of the training set that gets the trigger, in (0, 1]
    target: the target class, in [0, classes)
    """

    poisoning_rate: float = 0.1
    target: int = 0

    def __post_init__(self) -> None:
        rate = self.poisoning_rate
        within("(0, 1]", poisoning_rate=rate)
        require(self.target >= 0, f"target must be a class of the data set, got {self.target}")

    @property
    def trains(self) -> bool:
        """Whether `prepare` must run for each model, recipe and seed."""
        return False

    def cost(self, recipe: Recipe, images: int) -> float:
        """The expected forward passes of `prepare` per image of a training set of so many images; a
        backward pass counts as two."""
        return 0.0

    def lacks(self, network: Classifier, image_size: int) -> str:
        """The part that `prepare` needs and this network (with random weights) lacks at this image
        size, such as "a BatchNorm2d"; empty if nothing. Called before anything trains.
        """
        return ""

    def prepare(self, clean: ImageSet, context: TrainingContext, rng: torch.Generator) -> Self:
        """The attack after its own training on the clean training set, if `trains` is True.

        rng: in the state in which `poison` will get it
        """
        return self

    @abstractmethod
    def trigger(self, images: Tensor) -> Tensor:
        """uint8 (n, 3, height, width) -> the same shape, with the trigger of test images.

        A pure, deterministic function on any device.
        """

    def training_trigger(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """The trigger of poisoned training images, if it differs from that of test images."""
        return self.trigger(images)

    def disguise(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """uint8 (n, 3, height, width) -> cover images, which keep their labels."""
        return self.training_trigger(images, rng)

    def goal(self, labels: Tensor, num_classes: int) -> Tensor:
        """int64 (n,) -> the target label for an image of each label.

        The attack success rate covers the test images for which the two differ.
        """
        return torch.full_like(labels, self.target)

    @abstractmethod
    def poison(self, clean: ImageSet, rng: torch.Generator) -> Poisoned:
        """The poisoned training set. `rng` selects the poisoned images; the trigger of test images
        does not depend on it."""


def prepared() -> Any:
    """A dataclass field for the result of `prepare`. It is not a setting and not part of a spec."""
    return field(default=None, repr=False, compare=False, metadata={"filled": True})


def check_target(target: int, num_classes: int, part: str = "") -> None:
    """Raises `InvalidInput` for a target outside the classes.

    part: whose target it is, for an attack of several parts
    """
    whose = f" of {part}" if part else ""
    require(
        target < num_classes,
        f"target{whose} must be a class of the data set, 0 to {num_classes - 1}, got {target}",
    )

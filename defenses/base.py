"""What a defense is, and what it is allowed to know."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from bdbench.models import observer
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier
from bdbench.models.plugins.errors import require
from bdbench.models.training.context import TrainingContext
from bdbench.models.training.recipe import Recipe, steps_per_epoch

HEAD = "a linear layer `head` that reads its features"
"""What a network lacks that has none."""
VALIDATION = 0.2
"""Share of a clean budget that is kept for choosing and stopping."""


@dataclass(frozen=True)
class CleanBudget:
    """The trusted images lent to a defense.

    fit: to train on
    validation: for choosing and stopping, disjoint from fit
    """

    fit: ImageSet
    validation: ImageSet


@dataclass
class Journal:
    """What a method wants published about its own run. It is write-only for the method's purposes:
    the harness, which knows more, turns it into diagnostics.

    scalars: one number under each name
    samples: float32 (n,) under each name, one value per training image
    warnings: what a reader of the numbers must know about how they came about, as sentences
    """

    scalars: dict[str, float] = field(default_factory=dict)
    samples: dict[str, Tensor] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Context(TrainingContext):
    """The threat model as a type: all that a defense gets beside the training set.

    There is no test set here, no poison mask, no trigger and no target.

    clean: the declared budget of trusted images, None for a defense that declares none
    journal: see `Journal`
    train_undefended: gives the n-th network trained with no defense, lazily and shared
    """

    clean: CleanBudget | None = None
    journal: Journal = field(default_factory=Journal)
    train_undefended: Callable[[int], Classifier] | None = None

    def undefended(self, n: int = 0) -> Classifier:
        """A copy of the n-th network trained on this data with no defense, in eval mode.

        All post-training defenses of one poisoned set share it; its seconds are charged to each.
        """
        require(self.train_undefended is not None, "this context lends no undefended network")
        assert self.train_undefended is not None
        return self.train_undefended(n)

    def trusted(self) -> CleanBudget:
        """The clean images. Raises `InvalidInput` where none are lent."""
        require(self.clean is not None, "this defense needs clean images, and none are lent")
        assert self.clean is not None
        return self.clean

    def watch(self, classifier: Classifier) -> None:
        """Name the network that will be returned, so that its curves can be drawn. The outcome is
        never seen here."""
        observer.current().watch(classifier)

    def show(self, name: str, classifier: Classifier) -> None:
        """Name another network whose embedding is worth drawing, before it is trained."""
        observer.current().show(name, classifier)


@dataclass(frozen=True)
class Defense(ABC):
    """A method and its hyperparameters as fields. It keeps no state and changes nothing it is
    given.

    clean_fraction: share of the clean training set that the method asks for, in [0, 1)
    """

    clean_fraction: ClassVar[float] = 0.0

    @abstractmethod
    def fit(self, data: ImageSet, context: Context) -> Classifier:
        """A classifier in eval mode, made from data that may be poisoned."""

    def lacks(self, network: Classifier, image_size: int) -> str:
        """What `fit` needs of a network and this one, of random weights, lacks at an image size, as
        in "a BatchNorm2d"; empty if nothing. It is asked before anything trains.
        """
        return ""

    @property
    def lent(self) -> tuple[float, float]:
        """Shares of the training set in the clean images to fit and those to validate."""
        return self.clean_fraction * (1 - VALIDATION), self.clean_fraction * VALIDATION

    @property
    def undefended(self) -> int:
        """How many networks trained with no defense `fit` asks for."""
        return 0

    def cost(self, recipe: Recipe, images: int) -> float:
        """Expected work in forward passes per training image, of which there are so many; a
        backward pass counts as two. That of the undefended networks is a part of it."""
        return 3.0 * recipe.epochs

    def tuned(self, recipe: Recipe, images: int, updates: int, batch_size: int) -> float:
        """A part of `cost`: how often, per training image, a stage of so many published updates on
        the lent images to fit looks at one."""
        fit = max(1, round(self.lent[0] * images))
        batch = fit / steps_per_epoch(fit, batch_size)
        return recipe.shortened(updates) * batch / images

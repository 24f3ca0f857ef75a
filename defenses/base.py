"""The interface of a defense, and the threat model: what a defense may know."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from bdbench.models import observer
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier
from bdbench.models.plugins.errors import require
from bdbench.models.training.context import TrainingContext
from bdbench.models.training.feed import steps_per_epoch
from bdbench.models.training.recipe import Recipe

VALIDATION = 0.2
"""Share of the clean images that is for selection and early stopping."""
KEPT = "kept"
"""The verdict of a filter in a journal: 0 for the images that it calls poisoned, 1 for the rest."""


@dataclass(frozen=True)
class CleanBudget:
    """The trusted images lent to a defense.

    fit: for training
    validation: for selection and early stopping, disjoint from fit
    """

    fit: ImageSet
    validation: ImageSet


@dataclass
class Journal:
    """The numbers that a method publishes about its own run. A method only writes to it; the
    harness, which knows the poison mask, turns it into diagnostics.

    scalars: numbers by name
    samples: float32 (n,) by name, one value per training image
    warnings: sentences that a reader of the numbers must know
    """

    scalars: dict[str, float] = field(default_factory=dict)
    samples: dict[str, Tensor] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def filtered(self, name: str, scores: Tensor, suspects: Tensor) -> None:
        """Publish a filter of the training set.

        name: of the scores
        scores: float32 (n,), lower for images that look more like poison
        suspects: bool (n,), the images that the filter calls poisoned

        Raises `InvalidInput` for suspects that are not such a mask.
        """
        check_suspects(suspects, len(scores))
        self.samples[name] = scores
        self.samples[KEPT] = (~suspects).float()


def check_suspects(suspects: Tensor, count: int) -> None:
    """Raises `InvalidInput` unless suspects are a mask of so many images. Of integers, `~` would
    make the positions of other images."""
    require(
        suspects.dtype == torch.bool and suspects.shape == (count,),
        f"suspects must be a mask, bool ({count},), got {str(suspects.dtype).split('.')[-1]} "
        f"{tuple(suspects.shape)}: compare scores with a threshold, or use `lowest`",
    )


@dataclass(frozen=True)
class Context(TrainingContext):
    """The threat model as a type: everything that a defense gets besides the training set.

    It contains no test set, poison mask, trigger or target.

    clean: the trusted images that the defense declares; None if it declares none
    journal: see `Journal`
    train_undefended: returns the n-th network trained with no defense; it is trained on the first
        call and shared
    """

    clean: CleanBudget | None = None
    journal: Journal = field(default_factory=Journal)
    train_undefended: Callable[[int], Classifier] | None = None

    def undefended(self, n: int = 0) -> Classifier:
        """A copy of the n-th network trained on this data with no defense, in eval mode.

        All defenses of one poisoned set that repair a network share it; each is charged its
        training time.
        """
        require(
            self.train_undefended is not None,
            "this context has no undefended networks; give it train_undefended",
        )
        assert self.train_undefended is not None
        return self.train_undefended(n)

    def trusted(self) -> CleanBudget:
        """The clean images. Raises `InvalidInput` if none are lent."""
        require(
            self.clean is not None,
            "this defense needs clean images, but none are lent; set its clean_fraction",
        )
        assert self.clean is not None
        return self.clean

    def watch(self, classifier: Classifier) -> None:
        """Name the network that `fit` will return, so that the harness can draw its curves. The
        defense does not see them."""
        observer.current().watch(classifier)

    def show(self, name: str, classifier: Classifier) -> None:
        """Name another network whose embedding is worth drawing, before it is trained."""
        observer.current().show(name, classifier)


@dataclass(frozen=True)
class Defense(ABC):
    """A method, with its hyperparameters as fields. It has no state and does not modify its
    arguments.

    clean_fraction: share of the clean training set that the method needs, in [0, 1)
    clean_images: clean images of each class that it needs at least, if its clean_fraction is not 0;
        at least 2, one to fit and one to validate
    """

    clean_fraction: ClassVar[float] = 0.0
    clean_images: ClassVar[int] = 2

    @abstractmethod
    def fit(self, data: ImageSet, context: Context) -> Classifier:
        """Train a classifier on data that may be poisoned and return it in eval mode."""

    def lacks(self, network: Classifier, image_size: int) -> str:
        """The part that `fit` needs and this network (with random weights) lacks at this image
        size, such as "a BatchNorm2d"; empty if nothing. Called before anything trains.
        """
        return ""

    @property
    def clean_shares(self) -> tuple[float, float]:
        """The sizes of the fit and the validation part of the clean images, as shares of the
        training set."""
        return self.clean_fraction * (1 - VALIDATION), self.clean_fraction * VALIDATION

    @property
    def undefended(self) -> int:
        """The number of networks trained with no defense that `fit` requests."""
        return 0

    def cost(self, recipe: Recipe, images: int) -> float:
        """The expected forward passes per image of a training set of so many images; a backward
        pass counts as two. Includes the undefended networks."""
        return 3.0 * recipe.epochs

    def tuning_passes(self, recipe: Recipe, images: int, updates: int, batch_size: int) -> float:
        """A part of `cost`: the images in the batches of a stage of so many published updates on
        the fit part of the clean images, per image of the training set."""
        fit = max(1, round(self.clean_shares[0] * images))
        batch = fit / steps_per_epoch(fit, batch_size)
        return recipe.shortened(updates) * batch / images

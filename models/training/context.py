"""What anyone who trains a network is lent: fresh networks, a recipe, randomness and a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from bdbench.models.networks.classifier import Classifier, draws
from bdbench.models.rng import global_seed, stream
from bdbench.models.training.parallel import run_parallel
from bdbench.models.training.recipe import Recipe

T = TypeVar("T")


@dataclass(frozen=True)
class TrainingContext:
    """The means of training, the same for an attacker who prepares and a defender who fits.

    recipe: how this cell trains its networks
    device: where the images are and networks go
    build_network: a function without arguments that makes a network with new random weights
    seed: of the cell; use it by way of `rng`
    """

    recipe: Recipe
    device: torch.device
    build_network: Callable[[], Classifier]
    seed: int

    def build(self, purpose: str = "classifier") -> Classifier:
        """A fresh network on the device. The same purpose gives the same initial weights, which
        depend on the seed but not on the attack."""
        with global_seed(self.seed, "weights", purpose):
            network = self.build_network()
        network.precision = self.recipe.precision
        network.compiled = self.recipe.compiled
        if self.recipe.loader != "reference":
            network = network.to(memory_format=torch.channels_last)
        return network.to(self.device)

    def rng(self, purpose: str) -> torch.Generator:
        """A CPU generator of its own for each purpose, at its start on every call."""
        return stream(self.seed, "training", purpose)

    def parallel(self, *works: Callable[[], T]) -> list[T]:
        """What independent pieces of work return, in their order; see `parallel.py`. On a
        processor they run at the same time. On a GPU they do not, as nobody has measured it yet;
        nor do loaders with processes of their own, compilers, or networks whose layers draw from
        the global generator."""
        alone = self.recipe.compiled or self.recipe.loader == "reference" or draws(self.build())
        return run_parallel(works, together=self.device.type == "cpu" and not alone)

    def epochs(self, count: int) -> int:
        """A stage length written for a recipe of 100 epochs, scaled to this one; at least 1."""
        return max(1, round(count * self.recipe.epochs / 100))

    def updates(self, count: int) -> int:
        """The length of a stage on lent clean images, in updates, as published: it shrinks neither
        with the recipe's epochs nor with the number of images, and only where a suite says so."""
        return self.recipe.shortened(count)

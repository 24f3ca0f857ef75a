"""The training context: fresh networks, a recipe, random streams and a device."""

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
    """All that `prepare` of an attack and `fit` of a defense need to train networks.

    recipe: how this cell trains its networks
    device: the device of images and networks
    build_network: returns a network with new random weights
    seed: seed of the cell; use it through `rng`
    """

    recipe: Recipe
    device: torch.device
    build_network: Callable[[], Classifier]
    seed: int

    def build(self, purpose: str = "classifier") -> Classifier:
        """A fresh network on the device. The initial weights depend on the purpose and the seed,
        not on the attack."""
        with global_seed(self.seed, "weights", purpose):
            network = self.build_network()
        network.precision = self.recipe.precision
        network.compiled = self.recipe.compiled
        if self.recipe.loader != "reference":
            network = network.to(memory_format=torch.channels_last)
        return network.to(self.device)

    def rng(self, purpose: str) -> torch.Generator:
        """A CPU generator for this purpose; every call returns it in its initial state."""
        return stream(self.seed, "training", purpose)

    def parallel(self, *tasks: Callable[[], T]) -> list[T]:
        """Call independent functions and return their results in order; see `parallel.py`. On a CPU
        they run at the same time. They run one after another on a GPU (parallel runs have not been
        measured there), with torch.compile, with data loaders that start processes, and with
        networks whose layers draw from the global generator."""
        serial = self.recipe.compiled or self.recipe.loader == "reference" or draws(self.build())
        return run_parallel(tasks, together=self.device.type == "cpu" and not serial)

    def epochs(self, count: int) -> int:
        """The length of a stage in epochs, given for a recipe of 100 epochs and scaled to this
        recipe; at least 1."""
        return self.recipe.scaled(count)

    def updates(self, count: int) -> int:
        """The length of a stage on lent clean images, in updates, given as published. It depends
        neither on the epochs of the recipe nor on the number of images; only `updates` of the
        recipe, which a suite may set, scales it."""
        return self.recipe.shortened(count)

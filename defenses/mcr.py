"""MCR, mode connectivity repair, Zhao et al., ICLR 2020, arXiv:2005.00060.

A Bezier curve in weight space connects two trained networks w1 and w2,
phi(t) = (1 - t)^2 w1 + 2 t (1 - t) theta + t^2 w2. Its control point theta is trained on clean
images for a low loss along the whole curve, and nothing there preserves the backdoor. The method
returns a network from the interior of the curve, far from the backdoored ends.

Differs: t is selected on clean validation images, as the farthest from the backdoored ends with
nearly the best accuracy; the paper shows the whole curve. In the paper's code the learning rate
falls linearly from its initial value to a hundredth between 50 % and 90 % of the updates; with the
tenfold drops at 70 % and 90 % here, the sum of the rates is nearly the same. That code re-estimates
the statistics of normalisation layers on the whole clean training set; here they come from the
clean images lent. The method trains on four fifths of them. The second end is another plain
training, which is a part of this method's cost. `mcr(ends="single")` avoids it: its second end is
the first one, fine-tuned, and if that keeps the backdoor, so does the whole curve. Nesterov
momentum follows the recipe.

Elsewhere: the same rate and length on GTSRB and with other networks; the paper does not use them,
or tunes the rate for them in the range that the notes of its code give.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from bdbench.defenses import CleanBudget, Context, Defense, register
from bdbench.defenses.batch_norm import reset_statistics
from bdbench.models import (
    Batch,
    Classifier,
    ImageSet,
    Recipe,
    above,
    accuracy,
    at_least,
    batch_sizes,
    loop,
    train,
    within,
)

POINTS = tuple(n / 10 for n in range(1, 10))
"""The candidate values of t."""

Weights = Mapping[str, Tensor]


@register("mcr", title="MCR")
@dataclass(frozen=True)
class MCR(Defense):
    """An update is one batch of the clean images.

    ends: "two" undefended networks, which costs another plain training, or "single", the undefended
        network and the same one fine-tuned on the clean images (paper: both)
    updates: updates of the curve (code: 7,900, which is 100 epochs of 79)
    tuning_updates: updates of the fine-tuned end; unused by "two" (our choice)
    learning_rate: initial learning rate of both, above 0; it falls tenfold at 70 % and 90 % of the
        updates (code: 0.01, its notes: 0.015 to 0.03)
    augment: whether both train on augmented images (code: False; paper of CBD: True for all
        defenses)
    batch_size: images, at least 2 (code: 128)
    tolerance: largest gap of the selected t to the best validation accuracy, in [0, 1) (our choice)
    """

    clean_fraction: ClassVar[float] = 0.05

    version: ClassVar[int] = 2

    ends: Literal["single", "two"] = "two"
    updates: int = 7_900
    tuning_updates: int = 1_600
    learning_rate: float = 0.01
    augment: bool = False
    batch_size: int = 128
    tolerance: float = 0.02

    def __post_init__(self) -> None:
        at_least(1, updates=self.updates, tuning_updates=self.tuning_updates)
        batch_sizes(batch_size=self.batch_size)
        above(0, learning_rate=self.learning_rate)
        within("[0, 1)", tolerance=self.tolerance)

    def fit(self, data: ImageSet, context: Context) -> Classifier:
        clean, scalars = context.trusted(), context.journal.scalars
        first = context.undefended()
        second = self.second_end(first, clean, context)
        w1, w2 = weights(first), weights(second)
        theta = weights(self.train_theta(first, second, clean, context))

        network, accuracies = deepcopy(first), {}
        still = replace(context.recipe.still, batch_size=self.batch_size)

        def move_to(t: float) -> None:
            with torch.no_grad():
                for name, values in curve(t, w1, theta, w2).items():
                    network.get_parameter(name).copy_(values)
            reset_statistics(network, clean.fit, still, context.rng("statistics"))

        for t in POINTS:
            move_to(t)
            accuracies[t] = accuracy(network, clean.validation)
            scalars[f"validation accuracy at t = {t}"] = accuracies[t]
        scalars["t"] = selected = self.select(accuracies)
        move_to(selected)
        return network

    def second_end(self, first: Classifier, clean: CleanBudget, context: Context) -> Classifier:
        """The network at t = 1."""
        if self.ends == "two":
            return context.undefended(1)
        recipe, updates = self.schedule(context.recipe), context.updates(self.tuning_updates)
        return train(deepcopy(first), clean.fit, recipe, context.rng("end"), updates=updates)

    def train_theta(
        self, first: Classifier, second: Classifier, clean: CleanBudget, context: Context
    ) -> Classifier:
        """A network with the weights theta. The running statistics of its normalisation layers are
        meaningless: every t has updated them, and they belong to no point of the curve."""
        w1, w2 = weights(first), weights(second)
        network = deepcopy(first)
        with torch.no_grad():
            for name, values in network.named_parameters():
                values.lerp_(w2[name], 0.5)
        theta = dict(network.named_parameters())
        recipe, updates = self.schedule(context.recipe), context.updates(self.updates)
        # The weight decay acts on phi(t) and is therefore a part of the loss.
        optimizer = replace(recipe, weight_decay=0.0).sgd(network)
        draws = torch.rand(updates, generator=context.rng("t")).to(context.device)
        done = torch.zeros((), dtype=torch.int64, device=context.device)

        def step(batch: Batch) -> None:
            phi = curve(draws.take(done), w1, theta, w2)
            loss = cross_entropy(functional_call(network, phi, batch.images), batch.labels)
            norm = torch.stack([values.square().sum() for values in phi.values()]).sum()
            optimizer.zero_grad()
            (loss + 0.5 * recipe.weight_decay * norm).backward()
            optimizer.step()
            done.add_(1)

        network.train()
        loop(
            step,
            clean.fit,
            recipe=recipe,
            rng=context.rng("curve"),
            state={"bend": network, "optimizer": optimizer, "steps done": done},
            updates=updates,
        )
        return network.eval()

    def schedule(self, recipe: Recipe) -> Recipe:
        """The recipe with this method's own schedule."""
        return replace(
            recipe if self.augment else recipe.still,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            drops=(0.7, 0.9),
        )

    @property
    def undefended(self) -> int:
        return 1 if self.ends == "single" else 2

    def select(self, accuracies: Mapping[float, float]) -> float:
        """The t farthest from the backdoored ends among those with nearly the best accuracy."""
        # In floating point, 0.88 is less than 0.9 - 0.02, but must suffice.
        required = max(accuracies.values()) - self.tolerance - 1e-9
        good = [t for t, accuracy in accuracies.items() if accuracy >= required]

        def rank(t: float) -> tuple[float, float]:
            distance = t if self.ends == "single" else min(t, 1 - t)
            return round(distance, 6), accuracies[t]

        return max(good, key=rank)

    def cost(self, recipe: Recipe, images: int) -> float:
        fit, validation = self.clean_shares
        points = len(POINTS)
        own = fit * (points + 1) + validation * points
        for updates in [self.updates] + [self.tuning_updates] * (self.ends == "single"):
            own += 3.0 * self.tuning_passes(recipe, images, updates, self.batch_size)
        return 3.0 * recipe.epochs * self.undefended + own


def weights(network: Classifier) -> Weights:
    return {name: values.detach() for name, values in network.named_parameters()}


def curve(t: float | Tensor, w1: Weights, theta: Weights, w2: Weights) -> dict[str, Tensor]:
    """phi(t), parameter by parameter; exactly w1 at t = 0 and w2 at t = 1."""
    a, b, c = (1 - t) ** 2, 2 * t * (1 - t), t**2
    return {name: a * w1[name] + b * theta[name] + c * w2[name] for name in theta}

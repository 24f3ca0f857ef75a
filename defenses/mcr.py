"""MCR, mode connectivity repair, Zhao et al., ICLR 2020, arXiv:2005.00060.

Two trained networks w1 and w2 are joined by a Bezier curve in the space of their weights,
phi(t) = (1 - t)^2 w1 + 2 t (1 - t) theta + t^2 w2. Its bend theta is trained on clean images to
have a low loss all along the curve, and nothing maintains the backdoor there. A network from the
inside of the curve, far from the backdoored ends, is returned.

Differs: t is chosen on clean validation images, as the farthest from the backdoored ends whose
accuracy is nearly the best; the paper shows the whole curve. The paper's code falls linearly from
the first learning rate to a hundredth between 50 % and 90 % of the updates; the tenfold drops at
70 % and 90 % here sum to nearly the same. That code re-estimates the statistics of normalisation
layers on the whole clean training set; here they come from the clean images lent. Four fifths of
those are trained on. The second end is another plain training, which is a part of this method's
cost. `mcr(ends="single")` does without: it fine-tunes the first end for the second one, and where
that keeps the backdoor, so does all of the curve. Nesterov's momentum is the recipe's.

Elsewhere: the same rate and length on GTSRB and with other networks, which the paper does not have
or tunes for in the range of rates that its notes give.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from bdbench.defenses import CleanBudget, Context, Defense, register
from bdbench.models import (
    Batch,
    Classifier,
    ImageSet,
    Recipe,
    above,
    at_least,
    loop,
    one_of,
    predict,
    require,
    train,
)

ENDS = ("single", "two")
POINTS = tuple(n / 10 for n in range(1, 10))
"""The values of t that may be chosen."""

Weights = Mapping[str, Tensor]


@register("mcr", title="MCR")
@dataclass(frozen=True)
class MCR(Defense):
    """An update is one batch of the clean images.

    ends: "two" undefended networks, which costs another plain training, or "single", the undefended
        network and the same one fine-tuned on the clean images (paper: both)
    updates: of the curve (code: 7,900, which is 100 epochs of 79)
    tuning_updates: of the fine-tuned end; "two" has none (our choice)
    learning_rate: of both at the start, above 0; it falls tenfold at 70 % and 90 % of the updates
        (code: 0.01, its notes: 0.015 to 0.03)
    augment: whether they see augmented images (code: False)
    batch_size: images, at least 2 (code: 128)
    tolerance: how far below the best validation accuracy that of the chosen t may lie, in [0, 1)
        (our choice)
    """

    clean_fraction: ClassVar[float] = 0.05

    version: ClassVar[int] = 2

    ends: str = "two"
    updates: int = 7_900
    tuning_updates: int = 1_600
    learning_rate: float = 0.01
    augment: bool = False
    batch_size: int = 128
    tolerance: float = 0.02

    def __post_init__(self) -> None:
        one_of(ENDS, ends=self.ends)
        at_least(1, updates=self.updates, tuning_updates=self.tuning_updates)
        at_least(2, batch_size=self.batch_size)
        above(0, learning_rate=self.learning_rate)
        require(
            0 <= self.tolerance < 1,
            f"tolerance must be at least 0 and below 1, got {self.tolerance}",
        )

    def fit(self, data: ImageSet, context: Context) -> Classifier:
        clean, scalars = context.trusted(), context.journal.scalars
        first = context.undefended()
        second = self.other_end(first, clean, context)
        w1, w2 = weights(first), weights(second)
        theta = weights(self.bend(first, second, clean, context))

        network, accuracies = deepcopy(first), {}
        still = replace(context.recipe.still, batch_size=self.batch_size)

        def place(t: float) -> None:
            with torch.no_grad():
                for name, values in curve(t, w1, theta, w2).items():
                    network.get_parameter(name).copy_(values)
            settle(network, clean.fit, still, context.rng("statistics"))

        for t in POINTS:
            place(t)
            right = predict(network, clean.validation.images) == clean.validation.labels
            accuracies[t] = float(right.double().mean())
            scalars[f"validation accuracy at t = {t}"] = accuracies[t]
        scalars["t"] = chosen = self.choose(accuracies)
        place(chosen)
        return network

    def other_end(self, first: Classifier, clean: CleanBudget, context: Context) -> Classifier:
        """The network at t = 1."""
        if self.ends == "two":
            return context.undefended(1)
        recipe, updates = self.schedule(context.recipe), context.updates(self.tuning_updates)
        return train(deepcopy(first), clean.fit, recipe, context.rng("end"), updates=updates)

    def bend(
        self, first: Classifier, second: Classifier, clean: CleanBudget, context: Context
    ) -> Classifier:
        """A network whose weights are theta. Its statistics of normalisation layers are a scratch
        that moved with every t and belongs to no point of the curve."""
        w1, w2 = weights(first), weights(second)
        network = deepcopy(first)
        with torch.no_grad():
            for name, values in network.named_parameters():
                values.lerp_(w2[name], 0.5)
        theta = dict(network.named_parameters())
        recipe, updates = self.schedule(context.recipe), context.updates(self.updates)
        # Decay acts on phi(t), of which the optimizer knows nothing.
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

    def choose(self, accuracies: Mapping[float, float]) -> float:
        """The t farthest from the backdoored ends among those nearly as accurate as the best."""
        # Shares of images are compared, of which 0.9 - 0.02 should reach 0.88.
        enough = max(accuracies.values()) - self.tolerance - 1e-9
        good = [t for t, accuracy in accuracies.items() if accuracy >= enough]

        def rank(t: float) -> tuple[float, float]:
            distance = t if self.ends == "single" else min(t, 1 - t)
            return round(distance, 6), accuracies[t]

        return max(good, key=rank)

    def cost(self, recipe: Recipe, images: int) -> float:
        fit, validation = self.lent
        points = len(POINTS)
        own = fit * (points + 1) + validation * points
        for updates in [self.updates] + [self.tuning_updates] * (self.ends == "single"):
            own += 3.0 * self.tuned(recipe, images, updates, self.batch_size)
        return 3.0 * recipe.epochs * self.undefended + own


def weights(network: Classifier) -> Weights:
    return {name: values.detach() for name, values in network.named_parameters()}


def curve(t: float | Tensor, w1: Weights, theta: Weights, w2: Weights) -> dict[str, Tensor]:
    """phi(t), every parameter by itself; exactly w1 at 0 and w2 at 1."""
    a, b, c = (1 - t) ** 2, 2 * t * (1 - t), t**2
    return {name: a * w1[name] + b * theta[name] + c * w2[name] for name in theta}


def settle(network: Classifier, data: ImageSet, recipe: Recipe, rng: torch.Generator) -> None:
    """Estimate the statistics of normalisation layers anew: their average over the batches of one
    pass over `data`, each counting by its size. The network ends in eval mode."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    totals = [torch.zeros(2, norm.num_features, device=data.device) for norm in norms]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        # So that the layer holds the statistics of one batch, and none of those before it.
        norm.momentum = 1.0

    def step(batch: Batch) -> None:
        network(batch.images)
        for norm, total in zip(norms, totals, strict=True):
            now = torch.stack([norm.get_buffer("running_mean"), norm.get_buffer("running_var")])
            total.add_(now, alpha=len(batch.labels))

    network.train()
    with torch.no_grad():
        loop(
            step,
            data,
            recipe=replace(recipe, epochs=1, drops=()),
            rng=rng,
            state={"network": network, **{str(n): total for n, total in enumerate(totals)}},
        )
    for norm, momentum, (mean, variance) in zip(norms, momenta, totals, strict=True):
        norm.get_buffer("running_mean").copy_(mean / len(data))
        norm.get_buffer("running_var").copy_(variance / len(data))
        norm.momentum = momentum
    network.eval()

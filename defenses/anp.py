"""ANP, adversarial neuron pruning, Wu and Wang, NeurIPS 2021, arXiv:2110.14430.

Small perturbations of a few channels make a backdoored network predict its target even for clean
images. Every channel of a normalisation layer gets a mask m in [0, 1] on its weight gamma. On clean
images, the masks minimise the natural loss and the loss under the worst perturbations delta of
gamma and xi of beta. Channels with a small mask are pruned. No weight is trained.

Differs: the perturbations start at random and take one step along the sign of the gradient, as in
the authors' code, and stay within epsilon, as in the paper. All forward passes normalise by the
statistics of their batch (code); in the returned network the gammas of pruned channels are zero and
everything else is unchanged. The share of clean images is that of all defenses here (paper: 1 %),
and four fifths of them are used. Augmentation and momentum are the recipe's.

Elsewhere: the same on GTSRB and with other networks; a network without normalisation layers is
refused.
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

from bdbench.defenses import Context, Defense, register
from bdbench.models import Batch, Classifier, ImageSet, Recipe, at_least, loop, require, within

Norms = Mapping[str, nn.BatchNorm2d]
MASKED = "a BatchNorm2d that has weights"
"""Needed by the method: it masks these layers."""


@register("anp", title="ANP")
@dataclass(frozen=True)
class ANP(Defense):
    """
    threshold: channels with a mask of at most this value are pruned, in [0, 1) (paper: 0.2)
    epsilon: bound of delta and xi, relative to gamma and beta, at least 0 (paper: 0.4)
    alpha: weight of the natural loss, in [0, 1]; the loss under the worst perturbations has weight
        1 - alpha (paper: 0.2)
    updates: updates of the masks, which start at 1, each on one batch; at least 1 (paper: 2,000)
    learning_rate: learning rate of the masks, constant, above 0 (paper: 0.2)
    batch_size: images, at least 2 (paper: 128)
    """

    version: ClassVar[int] = 2
    clean_fraction: ClassVar[float] = 0.05
    undefended = 1

    threshold: float = 0.2
    epsilon: float = 0.4
    alpha: float = 0.2
    updates: int = 2_000
    learning_rate: float = 0.2
    batch_size: int = 128

    def __post_init__(self) -> None:
        limit = self.threshold
        within("[0, 1)", threshold=limit)
        at_least(0, epsilon=self.epsilon)
        require(0 <= self.alpha <= 1, f"alpha must be from 0 to 1, got {self.alpha}")
        at_least(1, updates=self.updates)
        self.schedule(Recipe())

    def schedule(self, recipe: Recipe) -> Recipe:
        """The recipe with this method's own schedule. Raises `InvalidInput` for a bad field."""
        return replace(
            recipe,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            weight_decay=0.0,
            nesterov=False,
            drops=(),
        )

    def lacks(self, network: Classifier, image_size: int) -> str:
        return "" if find_norms(network) else MASKED

    def fit(self, data: ImageSet, context: Context) -> Classifier:
        clean = context.trusted()
        network = deepcopy(context.undefended())
        norms = find_norms(network)
        require(bool(norms), f"anp needs {MASKED}")
        m = self.learn_masks(network, clean.fit, context)
        pruned = m <= self.threshold
        with torch.no_grad():
            for norm, rows in zip(norms.values(), pruned.split(widths(norms)), strict=True):
                norm.weight.masked_fill_(rows, 0.0)
        context.journal.scalars |= {
            "channels": len(m),
            "pruned channels": int(pruned.sum()),
            "mean mask": float(m.mean()),
        }
        return network

    def learn_masks(self, network: Classifier, clean: ImageSet, context: Context) -> Tensor:
        """m, float32 (channels,) in [0, 1], layer by layer. The network is not modified."""
        network = deepcopy(network).requires_grad_(False)
        norms = find_norms(network)
        m = nn.Parameter(torch.ones(sum(widths(norms)), device=context.device))
        recipe, updates = self.schedule(context.recipe), context.updates(self.updates)
        optimizer = recipe.sgd(nn.ParameterList([m]))
        # The initial delta and xi of every step.
        draws = torch.rand(updates, 2, len(m), generator=context.rng("changes"))
        draws = (self.epsilon * (2 * draws - 1)).to(context.device)
        done = torch.zeros(1, dtype=torch.int64, device=context.device)

        def loss(batch: Batch, perturbations: Tensor) -> Tensor:
            delta, xi = perturbations
            parameters = scale(norms, m + delta, 1 + xi)
            return cross_entropy(functional_call(network, parameters, batch.images), batch.labels)

        def step(batch: Batch) -> None:
            start = draws.index_select(0, done).squeeze(0).requires_grad_()
            (gradient,) = torch.autograd.grad(loss(batch, start), start)
            worst = start.detach() + self.epsilon * gradient.sign()
            worst = worst.clamp(-self.epsilon, self.epsilon)
            natural, adversarial = loss(batch, torch.zeros_like(worst)), loss(batch, worst)
            optimizer.zero_grad()
            (self.alpha * natural + (1 - self.alpha) * adversarial).backward()
            optimizer.step()
            with torch.no_grad():
                m.clamp_(0, 1)
            done.add_(1)

        network.train()
        loop(
            step,
            clean,
            recipe=recipe,
            rng=context.rng("masks"),
            state={"network": network, "masks": m, "optimizer": optimizer, "steps done": done},
            updates=updates,
        )
        return m.detach()

    def cost(self, recipe: Recipe, images: int) -> float:
        tuned = self.tuning_passes(recipe, images, self.updates, self.batch_size)
        return 3.0 * recipe.epochs + 9.0 * tuned


def find_norms(network: Classifier) -> Norms:
    """The normalisation layers with weights, by name."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d) and module.affine
    }


def widths(norms: Norms) -> list[int]:
    return [norm.num_features for norm in norms.values()]


def scale(norms: Norms, gamma_factor: Tensor, beta_factor: Tensor) -> dict[str, Tensor]:
    """The scaled gammas and betas by parameter name; factors (channels,), layer by layer."""
    scaled, sizes = {}, widths(norms)
    factors = zip(gamma_factor.split(sizes), beta_factor.split(sizes), strict=True)
    for (name, norm), (a, b) in zip(norms.items(), factors, strict=True):
        scaled[f"{name}.weight"] = norm.weight * a
        scaled[f"{name}.bias"] = norm.bias * b
    return scaled

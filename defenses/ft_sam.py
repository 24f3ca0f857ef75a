"""FT-SAM, fine-tuning with SAM, Zhu et al., ICCV 2023, arXiv:2304.11823.

Plain fine-tuning stays near the backdoored network. Here every step first moves the weights w by
epsilon to the nearby point with the largest loss, where larger weights may move further, and then
descends along the gradient at that point. Backdoor weights tend to be large, and they shrink most.

Differs: the learning rate is constant, as in the paper; in the authors' code it oscillates between
0.01 and 0 along a cosine with a period of 200 steps. That code also smooths labels by 0.1 on
CIFAR-10; here, as in the paper, the loss is plain cross entropy. The worst-case forward pass
normalises by the statistics of its batch, as is usual for SAM, and does not update the running
statistics, which belong to the weights that are returned. The radius is that of CIFAR-10 and
PreAct-ResNet18 for all data and networks (paper: 8 on GTSRB). The method trains on four fifths of
the clean images. Everything else follows the recipe: `ft_sam(rho=0.0)` is `ft(updates=800,
learning_rate=0.01, drops=(), batch_size=256)`, the control.

Elsewhere: radius, rate and length are the same on GTSRB (paper: 8 and half the epochs there) and
with other networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from bdbench.defenses import Context, Defense, register
from bdbench.models import Batch, Classifier, ImageSet, Recipe, at_least, loop, trainable


@register("ft_sam", title="FT-SAM")
@dataclass(frozen=True)
class FTSAM(Defense):
    """
    rho: radius of the neighbourhood, with distances relative to the weights; at least 0 (paper: 2)
    updates: updates, each on one batch of the clean images, at least 1 (paper: 100 epochs, which
        are 800 updates on 2,000 images, and 1,000 on its own 2,500; 50 on GTSRB)
    learning_rate: learning rate, constant, above 0 (paper: 0.01)
    batch_size: images, at least 2 (paper: 256)
    """

    version: ClassVar[int] = 2
    clean_fraction: ClassVar[float] = 0.05
    undefended = 1

    rho: float = 2.0
    updates: int = 800
    learning_rate: float = 0.01
    batch_size: int = 256

    def __post_init__(self) -> None:
        at_least(0, rho=self.rho)
        at_least(1, updates=self.updates)
        self.schedule(Recipe())

    def schedule(self, recipe: Recipe) -> Recipe:
        """The recipe with this method's own schedule. Raises `InvalidInput` for a bad field."""
        return replace(
            recipe,
            learning_rate=self.learning_rate,
            drops=(),
            batch_size=self.batch_size,
        )

    def fit(self, data: ImageSet, context: Context) -> Classifier:
        clean = context.trusted()
        network = deepcopy(context.undefended())
        context.watch(network)
        recipe = self.schedule(context.recipe)
        optimizer = recipe.sgd(network)
        names, w = zip(*trainable(network).items(), strict=True)

        def step(batch: Batch) -> None:
            loss = cross_entropy(network(batch.images), batch.labels)
            # A network may have a parameter that it does not use.
            gradients = torch.autograd.grad(loss, w, materialize_grads=True)
            epsilon = ascent(w, gradients, self.rho)
            worst = {name: p + e for name, p, e in zip(names, w, epsilon, strict=True)}
            # Copies, because a forward pass in training mode updates the running statistics.
            scratch = {name: values.clone() for name, values in network.named_buffers()}
            output = functional_call(network, worst | scratch, batch.images)
            optimizer.zero_grad()
            cross_entropy(output, batch.labels).backward()
            optimizer.step()

        network.train()
        loop(
            step,
            clean.fit,
            recipe=recipe,
            # The stream of `ft`, so that both methods are the same at rho = 0.
            rng=context.rng("fine-tuning"),
            state={"network": network, "optimizer": optimizer},
            updates=context.updates(self.updates),
        )
        return network.eval()

    def cost(self, recipe: Recipe, images: int) -> float:
        tuned = self.tuning_passes(recipe, images, self.updates, self.batch_size)
        return 3.0 * recipe.epochs + 6.0 * tuned


@torch.no_grad()
def ascent(w: Sequence[Tensor], gradients: Sequence[Tensor], rho: float) -> list[Tensor]:
    """Equation 4: epsilon = rho T^2 g / ||T g|| with T = diag |w|, the norm over all weights.

    Zero if all gradients are zero.
    """
    Tg = [p.abs() * g for p, g in zip(w, gradients, strict=True)]
    norm = torch.stack([part.norm() for part in Tg]).norm()
    scale = rho / norm.clamp(min=1e-12)
    return [scale * p.abs() * part for p, part in zip(w, Tg, strict=True)]

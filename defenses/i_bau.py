"""I-BAU, implicit backdoor adversarial unlearning, Zeng et al., ICLR 2022, arXiv:2110.03735.

One perturbation delta of all images can reach what a trigger reaches, so the weights theta of the
network should resist the worst one: they minimise the maximum, over all delta in an L2 ball, of
H(delta, theta), the mean loss of the clean images x + delta. In each round, gradient ascent finds
delta, and then theta descends along the implicit hypergradient, which also counts how the worst
delta changes with theta; a fixed-point iteration computes it.

Differs: rounds, learning rate and fixed-point steps are those in the notes of the authors' code;
BackdoorBench makes 5 rounds at 1e-4. We could not read the radius, the two inner rates and the
batch size in the paper, nor did we read that code: "unverified" marks what is said of it. A round
of the code is a pass over 5,000 clean images in batches of 100 for delta and another for theta,
hence 50 updates for each. These images are not part of the paper's training set, and a tenth as
many; here a twentieth of the training set is lent. Images outside of [0, 1] are not clipped, as in
the paper's H. The radius holds for images of 3 x 32 x 32 pixels and grows with the square root of
their number (our choice). H has no other term; the code is said to subtract a small multiple of the
norm of delta in the ascent, and to let one image in a hundred carry delta in the loss by which
theta is trained; the ascent that finds delta, and that the hypergradient differentiates, is on all
images. The latter is the default, because the printed mean over all images, `i_bau(portion=1.0)`,
destroys the network: a fifth of CIFAR-10 ends at an accuracy of 19 in place of 74. The paper does
not say how normalisation layers behave: here they use their running statistics, which stay as they
are, so that delta attacks the network that is returned. Images are augmented as in the recipe,
before delta is added, and the method trains on four fifths of the clean images.
`i_bau(fixed_point_steps=0)` is the control: the hypergradient without its implicit part, which is
adversarial training with a universal perturbation.

Elsewhere: the same on GTSRB and with other networks. It never compiles the network, because
torch.compile has no second derivatives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import Adam

from bdbench.defenses import Context, Defense, register
from bdbench.models import (
    Batch,
    Classifier,
    ImageSet,
    Recipe,
    State,
    above,
    at_least,
    loop,
    require,
    resumable,
    trainable,
)

PIXELS = 3 * 32 * 32
"""Numbers in an image of CIFAR-10, for which the radius is given."""


@register("i_bau", title="I-BAU")
@dataclass(frozen=True)
class IBAU(Defense):
    """
    rounds: rounds of both stages, at least 1 (code's notes: 3; BackdoorBench: 5)
    updates: updates of delta in each round, and then as many of theta, each on one batch of the
        clean images; at least 1 (code, unverified: one pass, see above)
    learning_rate: learning rate of theta, by Adam, constant, above 0 (code's notes: 0.001;
        BackdoorBench: 1e-4)
    radius: bound of the L2 norm of delta, for pixels in [0, 1] and images of 3 x 32 x 32; at least
        0 (code, unverified: 10)
    ascent_rate: learning rate of the ascent of delta, which starts at zero in each round, above 0
        (code, unverified: 10)
    fixed_point_steps: steps of the fixed-point iteration, at least 0; 0 leaves out the implicit
        part (code's notes and BackdoorBench: 5)
    fixed_point_rate: learning rate of the gradient ascent whose fixed point is differentiated,
        above 0 (code, unverified: 0.1)
    portion: share of the images of a batch that carry delta while theta is trained, in (0, 1]; at
        least one image (code, unverified: 0.01; paper: 1)
    batch_size: images, at least 2 (code, unverified: 100)
    """

    version: ClassVar[int] = 2
    clean_fraction: ClassVar[float] = 0.05
    undefended = 1

    rounds: int = 3
    updates: int = 50
    learning_rate: float = 0.001
    radius: float = 10.0
    ascent_rate: float = 10.0
    fixed_point_steps: int = 5
    fixed_point_rate: float = 0.1
    portion: float = 0.01
    batch_size: int = 100

    def __post_init__(self) -> None:
        at_least(1, rounds=self.rounds, updates=self.updates)
        at_least(0, radius=self.radius, fixed_point_steps=self.fixed_point_steps)
        above(0, ascent_rate=self.ascent_rate, fixed_point_rate=self.fixed_point_rate)
        require(0 < self.portion <= 1, f"portion must be above 0 and at most 1, got {self.portion}")
        self.schedule(Recipe())

    def schedule(self, recipe: Recipe) -> Recipe:
        """The recipe with this method's own schedule. Raises `InvalidInput` for a bad field."""
        return replace(
            recipe, batch_size=self.batch_size, learning_rate=self.learning_rate, drops=()
        )

    @property
    def two_losses(self) -> bool:
        """Whether theta descends on another loss than the one that delta ascends."""
        return self.portion < 1 and self.fixed_point_steps > 0

    def fit(self, data: ImageSet, context: Context) -> Classifier:
        clean = context.trusted().fit
        network = deepcopy(context.undefended()).eval()
        context.watch(network)
        compiled, network.compiled = network.compiled, False
        recipe, updates = self.schedule(context.recipe), context.updates(self.updates)
        theta = list(trainable(network).values())
        delta = torch.zeros(1, *clean.images.shape[1:], device=context.device, requires_grad=True)
        radius = self.radius * math.sqrt(delta.numel() / PIXELS)
        optimizer = Adam(theta, lr=self.learning_rate)
        rng = context.rng("clean images")

        def mean_loss(batch: Batch, portion: float = 1.0) -> Tensor:
            images = batch.images.clone()
            images[: max(1, round(portion * len(images)))] += delta
            return cross_entropy(network(images), batch.labels)

        def ascend(batch: Batch) -> None:
            (gradient,) = torch.autograd.grad(mean_loss(batch), delta)
            with torch.no_grad():
                delta.add_(gradient, alpha=self.ascent_rate)
                delta.mul_(radius / delta.norm().clamp(min=max(radius, 1e-12)))

        def unlearn(batch: Batch) -> None:
            outer = mean_loss(batch, self.portion)
            H = mean_loss(batch) if self.two_losses else outer
            gradients = hypergradient(
                outer, H, delta, theta, self.fixed_point_steps, self.fixed_point_rate
            )
            for parameter, gradient in zip(theta, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()

        state: State = {"network": network, "delta": delta, "optimizer": optimizer}
        for _ in resumable(self.rounds, {**state, "clean images": rng}):
            with torch.no_grad():
                delta.zero_()
            loop(ascend, clean, recipe=recipe, rng=rng, state={"delta": delta}, updates=updates)
            loop(unlearn, clean, recipe=recipe, rng=rng, state=state, updates=updates)
        context.journal.scalars["norm of delta"] = float(delta.detach().norm())
        network.compiled = compiled
        return network

    def cost(self, recipe: Recipe, images: int) -> float:
        tuned = self.tuning_passes(recipe, images, self.updates, self.batch_size)
        # Two or three forward passes, as many backward, and one for each step of the iteration.
        losses = 3.0 if self.two_losses else 2.0
        passes = 3.0 * losses + 2.0 * self.fixed_point_steps
        return 3.0 * recipe.epochs + passes * self.rounds * tuned


def hypergradient(
    outer: Tensor, H: Tensor, delta: Tensor, theta: Sequence[Tensor], steps: int, rate: float
) -> list[Tensor]:
    """The gradient by theta of outer(delta(theta), theta), where delta(theta) is a fixed point of
    the gradient ascent Phi(delta, theta) = delta + rate * dH/ddelta.

    It is douter/dtheta + (dPhi/dtheta)^T v with v = (I - dPhi/ddelta)^-T douter/ddelta, and v is
    the limit of v <- (dPhi/ddelta)^T v + douter/ddelta from v = 0, of which so many steps are made.
    Where H is not concave in delta, the iteration has no limit, and the number of steps bounds v.
    The paper's outer loss is H itself.
    """
    shared = outer is H
    by_delta, *direct = torch.autograd.grad(
        outer, (delta, *theta), create_graph=shared and steps > 0, materialize_grads=True
    )
    if steps == 0:
        return direct
    v = g = by_delta.detach()
    slope = by_delta if shared else torch.autograd.grad(H, delta, create_graph=True)[0]
    for _ in range(steps - 1):
        (Hv,) = torch.autograd.grad(slope, delta, v, retain_graph=True, materialize_grads=True)
        v = v + rate * Hv + g
    implicit = torch.autograd.grad(slope, theta, rate * v, materialize_grads=True)
    return [a.detach() + b for a, b in zip(direct, implicit, strict=True)]

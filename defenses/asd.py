"""ASD, adaptively splitting the poisoned dataset, Gao et al., CVPR 2023, arXiv:2303.12993.

A few clean images start a pool whose labels are used; MixMatch trains one network on this pool and,
without labels, on all other images. Before every epoch, the network's losses fill the pool anew:
first with the best fitted images of each class, then with the best fitted of all. At the end, a
virtual copy of the network learns all labels for a moment, and the images whose loss falls most
stay out, because a trigger is learned faster than a hard clean image.

Differs: the paper's 120 epochs of 1,024 iterations would cost 6.6 plain trainings. As in `dbd`, the
default has fewer and shorter epochs, half as many, and an epoch is a share of the training set: 2.6
plain trainings. The paper's lengths are `asd(first_epochs=60, second_epochs=30, third_epochs=30,
semi_share=1.31072)` for 50,000 images and a recipe of 100 epochs; all lengths scale with the
recipe, but not `interval`, so the pool of stage 1 ends with fewer images of a class: 110 at the
paper's lengths, 50 at these, 10 in 30 epochs. "Unverified" marks what was not checked against the
text of the paper. Open in what was read, and our choice:
the pool of stage 1 is chosen anew before every epoch and has at most `alpha` of a class; the
virtual copy trains all its layers, with cross entropy, the recipe's augmentation and batch size and
an Adam of its own; losses that a split compares are of images without augmentation, in eval mode;
lambda_U rises linearly over all epochs. In short trainings, the losses of most images rise in the
virtual copy, and it then ranks them by how little they do; the record has the mean fall. Seeds are
extra images, beside their copies in the training set; all lent images are seeds, because nothing is
validated. MixMatch is that of `dbd`: the recipe's augmentation, mixing coefficients for each pair
of images, guesses with batch statistics. The paper says that DBD's last stage can implant the
backdoor again, the opposite of what DBD's paper reports.

Elsewhere: the same on GTSRB and with other networks. Ten images of every class are lent, or 0.2 %
of one that has more than 5,000, and a smaller class is refused. A share of the training set
replaces 1,024 iterations, so an epoch is shorter on smaller sets.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import Adam

from bdbench.defenses import Context, Defense, register
from bdbench.defenses.filters import by_label, lowest
from bdbench.defenses.mixmatch import MixMatch, symmetric_cross_entropy
from bdbench.models import (
    Batch,
    Classifier,
    ImageSet,
    Recipe,
    State,
    above,
    at_least,
    batch_sizes,
    logits,
    loop,
    portion,
    resumable,
    within,
)


@register("asd", title="ASD")
@dataclass(frozen=True)
class ASD(Defense):
    """Lengths are given for a recipe of 100 epochs and scaled to that of the cell.

    first_epochs: epochs of stage 1, the class-aware split (paper, unverified: 60; reduced)
    second_epochs: epochs of stage 2, the class-agnostic split (paper, unverified: 30; reduced)
    third_epochs: epochs of stage 3, the meta-split (paper, unverified: 30; reduced)
    growth: images of each class that join the pool of stage 1 every `interval` epochs, at least 1
        (paper, unverified: 10)
    interval: epochs, not scaled with the recipe (paper, unverified: 5)
    alpha: share of all images in the pool of stage 2, and largest share of a class in that of
        stage 1, in (0, 1) (paper, unverified: 0.5; the limit is our choice)
    gamma: share of all images in the pool of stage 3, in (0, 1) (paper, unverified: 0.5)
    virtual_epochs: epochs of the virtual copy, not scaled with the recipe (paper, unverified: 1)
    virtual_rate: learning rate of its Adam, above 0 (paper, unverified: 0.015)
    learning_rate: rate of the one Adam for MixMatch, constant (paper, unverified: 0.002)
    ce_weight, rce_weight: weights of the two terms of the symmetric cross entropy (paper of DBD)
    semi_share: labelled images in an epoch, as a share of all images, above 0; it has as many
        unlabelled ones (paper, unverified: 1,024 batches, which is 1.31 on CIFAR-10;
        reduced)
    semi_batch_size: labelled images in a batch, and unlabelled ones (paper: 64)
    sharpening: T of MixMatch, which raises guesses to the power 1/T, above 0 (paper: 0.5)
    beta: both parameters of the Beta distribution of mixing coefficients, above 0 (MixMatch's
        paper)
    lambda_u: weight of the unlabelled loss at the end of its linear ramp (paper: 15)
    """

    clean_fraction: ClassVar[float] = 0.002
    clean_images: ClassVar[int] = 10

    first_epochs: int = 30
    second_epochs: int = 15
    third_epochs: int = 15
    growth: int = 10
    interval: int = 5
    alpha: float = 0.5
    gamma: float = 0.5
    virtual_epochs: int = 1
    virtual_rate: float = 0.015
    learning_rate: float = 2e-3
    ce_weight: float = 0.1
    rce_weight: float = 1.0
    semi_share: float = 1.0
    semi_batch_size: int = 64
    sharpening: float = 0.5
    beta: float = 0.75
    lambda_u: float = 15.0

    def __post_init__(self) -> None:
        at_least(1, first_epochs=self.first_epochs, second_epochs=self.second_epochs)
        at_least(1, third_epochs=self.third_epochs, virtual_epochs=self.virtual_epochs)
        at_least(1, growth=self.growth, interval=self.interval)
        batch_sizes(semi_batch_size=self.semi_batch_size)
        above(0, learning_rate=self.learning_rate, virtual_rate=self.virtual_rate)
        above(0, semi_share=self.semi_share, sharpening=self.sharpening, beta=self.beta)
        at_least(0, ce_weight=self.ce_weight, rce_weight=self.rce_weight, lambda_u=self.lambda_u)
        within("(0, 1)", alpha=self.alpha, gamma=self.gamma)

    def fit(self, data: ImageSet, context: Context) -> Classifier:
        seeds = context.trusted()
        context.journal.scalars["seeds"] = len(seeds.fit) + len(seeds.validation)
        parts = (data, seeds.fit, seeds.validation)
        everything = ImageSet(
            torch.cat([part.images for part in parts]),
            torch.cat([part.labels for part in parts]),
            data.num_classes,
        )
        first, second, third = self.lengths(context.recipe)
        epochs = first + second + third
        network, virtual = context.build(), context.build("virtual")
        context.watch(network)

        def weight(done: Tensor) -> Tensor:
            return self.lambda_u * done / epochs

        training = MixMatch(
            network,
            Adam(network.parameters(), lr=self.learning_rate),
            context,
            weight,
            steps=self.steps(len(data)),
            batch_size=self.semi_batch_size,
            beta=self.beta,
            sharpening=self.sharpening,
        )
        recipe, rng, state = training.recipe, training.rng, training.state
        virtual_rng = context.rng("virtual")
        losses, falls, pool = torch.zeros(3, len(data), device=context.device)
        own = {"losses": losses, "falls": falls, "pool": pool, "virtual": virtual_rng}
        for epoch in resumable(epochs, {**state, **own}):
            losses.copy_(self.losses(network, data))
            if epoch < first:
                count = self.growth * (epoch // self.interval)
                chosen = lowest_of_each(losses, data.labels, count, self.alpha)
            elif epoch < first + second:
                chosen = lowest(losses, portion(self.alpha, len(data)))
            else:
                virtual.load_state_dict(network.state_dict())
                # As a branch, so that its rounds are none of the curve of the network.
                context.parallel(partial(self.learn, virtual, data, context.recipe, virtual_rng))
                falls.copy_(losses - self.losses(virtual, data))
                chosen = lowest(falls, portion(self.gamma, len(data)))
            pool.copy_(chosen)
            with_labels, rest = chosen.nonzero().flatten(), (~chosen).nonzero().flatten()
            extra = torch.arange(len(data), len(everything), device=context.device)
            labelled, unlabelled = training.draw(everything, torch.cat([with_labels, extra]), rest)
            network.train()
            loop(training.step, labelled, unlabelled, recipe=recipe, rng=rng, state=state)
        context.journal.scalars["mean fall in the virtual copy"] = float(falls.mean())
        context.journal.filtered("meta-split", -falls, pool == 0)
        return network.eval()

    def learn(
        self, virtual: Classifier, data: ImageSet, recipe: Recipe, rng: torch.Generator
    ) -> None:
        """The meta-split's theta' = theta' - beta grad L(theta'), on all images with their
        labels."""
        optimizer = Adam(virtual.parameters(), lr=self.virtual_rate)

        def step(batch: Batch) -> None:
            optimizer.zero_grad()
            cross_entropy(virtual(batch.images), batch.labels).backward()
            optimizer.step()

        virtual.train()
        recipe = replace(recipe, epochs=self.virtual_epochs, drops=())
        state: State = {"virtual": virtual, "optimizer": optimizer}
        loop(step, data, recipe=recipe, rng=rng, state=state)

    def losses(self, network: Classifier, data: ImageSet) -> Tensor:
        """Symmetric cross entropy of every image, (n,)."""
        output = logits(network, data.images)
        return symmetric_cross_entropy(output, data.labels, self.ce_weight, self.rce_weight)

    def lengths(self, recipe: Recipe) -> tuple[int, int, int]:
        """Epochs of the three stages, as `Context.epochs` scales them."""
        first, second, third = (
            recipe.scaled(count)
            for count in (self.first_epochs, self.second_epochs, self.third_epochs)
        )
        return first, second, third

    def steps(self, images: int) -> int:
        """Batches of an epoch of MixMatch."""
        return max(1, round(self.semi_share * images / self.semi_batch_size))

    def cost(self, recipe: Recipe, images: int) -> float:
        first, second, third = self.lengths(recipe)
        # MixMatch takes a labelled image and two views of an unlabelled one: it guesses the label
        # of these two and trains on all three. A loss-guided split is a forward pass of every
        # image; a meta-split trains the virtual copy and adds a second one.
        drawn = self.steps(images) * self.semi_batch_size / images
        meta = 3.0 * self.virtual_epochs + 1
        return (first + second + third) * (1.0 + drawn * (2 + 3 * 3)) + third * meta


def lowest_of_each(losses: Tensor, labels: Tensor, count: int, share: float) -> Tensor:
    """bool (n,), True at the `count` lowest losses (n,) of every label (n,), but at most at this
    share of a label's images."""
    chosen = torch.zeros(len(losses), dtype=torch.bool, device=losses.device)
    for members in by_label(labels):
        few = lowest(losses[members], min(count, portion(share, len(members))))
        chosen[members[few]] = True
    return chosen

"""DBD, decoupling-based backdoor defense, Huang et al., ICLR 2022, arXiv:2202.03423.

A network can associate a trigger with a label only if it learns images together with labels. The
backbone is therefore trained without labels (SimCLR), then a linear head on top of it with all
labels. Finally the whole network is tuned on all images with MixMatch; at the start of every epoch,
the images that it fits worst lose their labels.

Differs: the paper's 1,000 epochs of SimCLR and 190 of MixMatch would cost thirty plain trainings.
The default is a tenth of the first and about a quarter of the second, and an epoch of MixMatch is a
share of the training set instead of 1,024 iterations: 4.03 plain trainings. The paper's lengths
are `dbd(ssl_epochs=1000, ssl_batch_size=512, ssl_learning_rate=0.4, semi_epochs=190,
semi_share=1.31072)` for 50,000 images and a recipe of 100 epochs; all lengths scale with the
recipe. The batch size of SimCLR is a quarter of the paper's, and so is its learning rate (linear
scaling, Goyal et al., 2017, arXiv:1706.02677): the shorter stage keeps 40 % of the paper's steps.
NT-Xent uses all 2b views as anchors, as in SimCLR's paper. The head is trained on a backbone in
eval mode: not even its running statistics change. Head and MixMatch use the recipe's augmentation,
and so do the losses that a split compares, as in the authors' code; the batch size of the head is
the recipe's. Mixing coefficients are drawn for each pair of images. Label guesses use batch
statistics, as the training does, and the labelled images and both views of the others pass through
the network together, so they share these. Views: `dbd_views.py`.

Elsewhere: the same on GTSRB and with other networks, except that views are mirrored only if the
recipe mirrors images. A share of the training set replaces 1,024 iterations, so an epoch of
MixMatch is shorter on smaller sets.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from bdbench.defenses import Context, Defense, register
from bdbench.defenses.dbd_views import draw_views, make_views
from bdbench.defenses.mixmatch import (
    MixMatch,
    augmented,
    symmetric_cross_entropy,
    without_labels,
)
from bdbench.models import (
    Batch,
    Classifier,
    ImageSet,
    Recipe,
    State,
    above,
    at_least,
    batch_sizes,
    lacks_head,
    logits,
    loop,
    portion,
    require,
    resumable,
    within,
)
from bdbench.models.rng import global_seed

PROJECTION = 128
"""Width of the embedding that NT-Xent compares (paper)."""


@register("dbd", title="DBD")
@dataclass(frozen=True)
class DBD(Defense):
    """Lengths are given for a recipe of 100 epochs and scaled to that of the cell. "paper" stands
    for the paper together with its code.

    ssl_epochs: epochs of SimCLR (paper: 1000; reduced)
    ssl_batch_size: images, with two views each (paper: 512; reduced, see above)
    ssl_learning_rate: initial rate of SGD, with a cosine schedule to 0 (paper: 0.4; scaled with the
        batch size)
    temperature: temperature of NT-Xent, above 0 (paper)
    head_epochs: epochs of the linear head on the frozen backbone (paper)
    learning_rate: rate of the one Adam for the head and MixMatch, constant (paper)
    ce_weight, rce_weight: weights of the two terms of the symmetric cross entropy (paper)
    alpha: share of the images that keep their labels, in (0, 1) (paper)
    semi_epochs: epochs of MixMatch, each of which starts with a new split (paper: 190; reduced)
    semi_share: labelled images in such an epoch, as a share of all images, above 0; it has as many
        unlabelled ones (paper: 1,024 batches, which is 1.31 on CIFAR-10; reduced)
    semi_batch_size: labelled images in a batch, and unlabelled ones (paper)
    sharpening: T of MixMatch, which raises guesses to the power 1/T, above 0 (MixMatch's paper)
    beta: both parameters of the Beta distribution of mixing coefficients, above 0 (MixMatch's
        paper)
    lambda_u: weight of the unlabelled loss at the end of its linear ramp, which counts the epochs
        of the head too: at the start 15 * 10/190 with the paper's lengths, 3 with the default
        ones, which reach 15 after four fifths of the epochs (paper: 15; code)
    """

    version: ClassVar[int] = 2

    ssl_epochs: int = 100
    ssl_batch_size: int = 128
    ssl_learning_rate: float = 0.1
    temperature: float = 0.5
    head_epochs: int = 10
    learning_rate: float = 2e-3
    ce_weight: float = 0.1
    rce_weight: float = 1.0
    alpha: float = 0.5
    semi_epochs: int = 50
    semi_share: float = 1.0
    semi_batch_size: int = 64
    sharpening: float = 0.5
    beta: float = 0.75
    lambda_u: float = 15.0

    def __post_init__(self) -> None:
        at_least(1, ssl_epochs=self.ssl_epochs, head_epochs=self.head_epochs)
        at_least(1, semi_epochs=self.semi_epochs)
        batch_sizes(ssl_batch_size=self.ssl_batch_size, semi_batch_size=self.semi_batch_size)
        above(0, ssl_learning_rate=self.ssl_learning_rate, learning_rate=self.learning_rate)
        above(0, temperature=self.temperature, sharpening=self.sharpening)
        above(0, semi_share=self.semi_share, beta=self.beta)
        at_least(0, ce_weight=self.ce_weight, rce_weight=self.rce_weight, lambda_u=self.lambda_u)
        within("(0, 1)", alpha=self.alpha)

    def lacks(self, network: Classifier, image_size: int) -> str:
        return lacks_head(network, trained=True)

    def fit(self, data: ImageSet, context: Context) -> Classifier:
        kept = portion(self.alpha, len(data))
        require(
            0 < kept < len(data),
            f"alpha={self.alpha} of {len(data)} images leaves no image with a label, or none "
            "without one; choose another alpha",
        )
        context.journal.scalars["images kept"] = kept
        network = context.build()
        self.learn_features(network, without_labels(data), context)
        context.watch(network)
        # One optimizer for both stages: in the first, only the head has gradients.
        optimizer = Adam(network.parameters(), lr=self.learning_rate)
        self.train_head(network, optimizer, data, context)
        self.tune(network, optimizer, data, context)
        return network.eval()

    def learn_features(self, network: Classifier, data: ImageSet, context: Context) -> None:
        """Stage 1: SimCLR on the backbone."""
        epochs = context.epochs(self.ssl_epochs)
        # Images are not augmented here: the step makes both views of them.
        recipe = replace(
            context.recipe,
            epochs=1,
            batch_size=self.ssl_batch_size,
            learning_rate=self.ssl_learning_rate,
            nesterov=False,
            drops=(),
            padding=0,
            flip=False,
            cutout=0,
        )
        with global_seed(context.seed, "weights", "projector"):
            projector = build_projector(network.head.in_features).to(context.device)
        optimizer = recipe.sgd(nn.ModuleList([network, projector]))
        schedule = CosineAnnealingLR(optimizer, epochs)
        losses = torch.zeros(len(data), device=context.device)

        def step(batch: Batch) -> None:
            views = [make_views(batch.images, draws[batch.index]) for draws in view_draws]
            loss = nt_xent(projector(network.features(torch.cat(views))), self.temperature)
            losses[batch.index] = loss.detach()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        network.train()
        rng, views_rng = context.rng("simclr"), context.rng("views")
        state: State = {
            "network": network,
            "projector": projector,
            "optimizer": optimizer,
            "losses": losses,
        }
        own: State = {"schedule": schedule, "order": rng, "views": views_rng}
        for _ in resumable(epochs, {**state, **own}):
            view_draws = [
                draw_views(len(data), data.size, context.recipe.flip, views_rng).to(context.device)
                for _ in range(2)
            ]
            loop(step, data, recipe=recipe, rng=rng, state=state)
            schedule.step()
        context.journal.scalars["last SimCLR loss"] = float(losses.mean())

    def train_head(
        self, network: Classifier, optimizer: Adam, data: ImageSet, context: Context
    ) -> None:
        """Stage 2: a linear head on frozen features, with all labels."""
        recipe = replace(context.recipe, epochs=context.epochs(self.head_epochs), drops=())

        def step(batch: Batch) -> None:
            with torch.no_grad():
                features = network.features(batch.images)
            optimizer.zero_grad()
            self.losses(network.head(features), batch.labels).mean().backward()
            optimizer.step()

        network.eval()
        loop(
            step,
            data,
            recipe=recipe,
            rng=context.rng("head"),
            state={"head": network.head, "optimizer": optimizer},
        )

    def tune(self, network: Classifier, optimizer: Adam, data: ImageSet, context: Context) -> None:
        """Stage 3: MixMatch on the whole network, with the labels of the images that it fits
        best."""
        epochs, head = context.epochs(self.semi_epochs), context.epochs(self.head_epochs)

        def weight(done: Tensor) -> Tensor:
            return self.lambda_u * ((head + done) / epochs).clamp(max=1)

        training = MixMatch(
            network,
            optimizer,
            context,
            weight,
            steps=max(1, round(self.semi_share * len(data) / self.semi_batch_size)),
            batch_size=self.semi_batch_size,
            beta=self.beta,
            sharpening=self.sharpening,
        )
        recipe, rng, state = training.recipe, training.rng, training.state
        losses, labels_kept = torch.zeros(2, len(data), device=context.device)
        for _ in resumable(epochs, {**state, "losses": losses, "kept": labels_kept}):
            views = augmented(data, recipe.augmentation, rng)
            losses.copy_(self.losses(logits(network, views), data.labels))
            kept, rest = split(losses, self.alpha)
            labels_kept.zero_().index_fill_(0, kept, 1.0)
            labelled, unlabelled = training.draw(data, kept, rest)
            network.train()
            loop(training.step, labelled, unlabelled, recipe=recipe, rng=rng, state=state)
        context.journal.filtered("label fit", -losses, labels_kept == 0)

    def losses(self, output: Tensor, labels: Tensor) -> Tensor:
        """Symmetric cross entropy, (b,)."""
        return symmetric_cross_entropy(output, labels, self.ce_weight, self.rce_weight)

    def cost(self, recipe: Recipe, images: int) -> float:
        ssl, head, semi = (
            recipe.scaled(count) for count in (self.ssl_epochs, self.head_epochs, self.semi_epochs)
        )
        # SimCLR trains on two views of an image. MixMatch takes a labelled image and two views of
        # an unlabelled one: it guesses the label of these two and trains on all three. A split is
        # one forward pass of every image.
        return 6.0 * ssl + 1.0 * head + semi * (1.0 + self.semi_share * (2 + 3 * 3))


def build_projector(width: int) -> nn.Module:
    """SimCLR's g: float32 (b, width) -> (b, 128)."""
    return nn.Sequential(
        nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, PROJECTION)
    )


def nt_xent(z: Tensor, temperature: float) -> Tensor:
    """SimCLR's equation 1, averaged over all anchors; rows n and n + b of z (2b, d) are a pair."""
    z = normalize(z)
    similarity = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    partner = torch.arange(len(z), device=z.device).roll(len(z) // 2)
    return cross_entropy(similarity, partner)


def split(losses: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """The positions of the floor(alpha n) lowest losses, and those of the others."""
    order = losses.argsort(stable=True)
    kept = portion(alpha, len(losses))
    return order[:kept], order[kept:]

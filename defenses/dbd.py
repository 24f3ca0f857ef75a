"""DBD, decoupling-based backdoor defense, Huang et al., ICLR 2022, arXiv:2202.03423.

A trigger and its label can only be joined where images are learned together with labels. So the
backbone is trained without labels (SimCLR), then a linear head on top of it with all labels. The
images that this network fits worst lose their labels, anew in every epoch, while the whole network
is tuned on all images with MixMatch.

Differs: the paper's 1,000 epochs of SimCLR and 190 of MixMatch would cost thirty plain trainings.
The default is a tenth of the first and about a quarter of the second, with a share of the training
set for an epoch of MixMatch in place of 1,024 iterations: 4.03 plain trainings. The paper's lengths
are `dbd(ssl_epochs=1000, ssl_batch_size=512, ssl_learning_rate=0.4, semi_epochs=190,
semi_share=1.31072)` for 50,000 images and a recipe of 100 epochs; all lengths shrink with the
recipe. A batch of SimCLR is a quarter of the paper's, and its learning rate with it (linear
scaling, Goyal et al., 2017, arXiv:1706.02677): the shorter stage keeps 40 % of the paper's
steps. NT-Xent has all 2b views as anchors, as in SimCLR's paper. The head is trained on a backbone
in eval mode: not even its running statistics change. Head and MixMatch see the recipe's
augmentation, as in the authors' code do the losses that a split compares, and head batches are the
recipe's. Mixing shares are drawn for each pair of images.
Guesses use batch statistics, as the training does. Views: `dbd_views.py`.

Elsewhere: the same on GTSRB and with other networks, but that views are mirrored only where the
recipe mirrors images. A share of the training set stands for 1,024 iterations, so an epoch of
MixMatch is shorter on smaller sets.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from bdbench.defenses import HEAD, Context, Defense, register
from bdbench.defenses.dbd_views import draw_views, make_views
from bdbench.models import (
    Batch,
    Classifier,
    ImageSet,
    Recipe,
    State,
    above,
    at_least,
    has_head,
    logits,
    loop,
    portion,
    require,
    resumable,
)
from bdbench.models.rng import global_seed
from bdbench.models.training.augment import (
    Augmentation,
    AugmentationDraws,
    augment,
    draw_augmentation,
    to_float,
)

PROJECTION = 128
"""Width of the embedding that NT-Xent compares (paper)."""
CHUNK = 1_000
"""Images that are augmented at a time for a split."""


@register("dbd", title="DBD")
@dataclass(frozen=True)
class DBD(Defense):
    """Lengths are written for a recipe of 100 epochs and scaled to the cell's. "paper" stands for
    the paper and its code together.

    ssl_epochs: epochs of SimCLR (paper: 1000; reduced)
    ssl_batch_size: images, each seen twice (paper: 512; reduced, see above)
    ssl_learning_rate: of SGD at the start, follows a cosine to 0 (paper: 0.4; scaled as the batch)
    temperature: of NT-Xent, above 0 (paper)
    head_epochs: epochs of the linear head on the frozen backbone (paper)
    learning_rate: of the one Adam for the head and MixMatch, constant (paper)
    ce_weight, rce_weight: of the two terms of the symmetric cross entropy (paper)
    alpha: share of the images that keep their labels, in (0, 1) (paper)
    semi_epochs: epochs of MixMatch, before each of which the labels are chosen (paper: 190;
        reduced)
    semi_share: labelled images drawn in such an epoch, as a share of all images, above 0; as many
        unlabelled ones are drawn (paper: 1,024 batches, which is 1.31 on CIFAR-10; reduced)
    semi_batch_size: labelled images, and unlabelled ones (paper)
    sharpening: T of MixMatch, whose guesses are raised to 1/T, above 0 (MixMatch's paper)
    beta: both parameters of the Beta distribution of mixing shares, above 0 (MixMatch's paper)
    lambda_u: weight of the unlabelled loss at the end of its linear rise, which counts the epochs
        of the head too: 15 * 10/190 at first with the paper's lengths (paper: 15; code)
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
        at_least(2, ssl_batch_size=self.ssl_batch_size, semi_batch_size=self.semi_batch_size)
        above(0, ssl_learning_rate=self.ssl_learning_rate, learning_rate=self.learning_rate)
        above(0, temperature=self.temperature, sharpening=self.sharpening)
        above(0, semi_share=self.semi_share, beta=self.beta)
        at_least(0, ce_weight=self.ce_weight, rce_weight=self.rce_weight, lambda_u=self.lambda_u)
        require(0 < self.alpha < 1, f"alpha must be between 0 and 1, got {self.alpha}")

    def lacks(self, network: Classifier, image_size: int) -> str:
        return "" if has_head(network) else HEAD

    def fit(self, data: ImageSet, context: Context) -> Classifier:
        kept = portion(self.alpha, len(data))
        require(
            0 < kept < len(data),
            f"alpha={self.alpha} of {len(data)} images leaves none with or none without a label",
        )
        context.journal.scalars["images kept"] = kept
        network = context.build()
        self.learn_features(network, without_labels(data), context)
        context.watch(network)
        # One for both stages: in the first, only the head has gradients.
        optimizer = Adam(network.parameters(), lr=self.learning_rate)
        self.train_head(network, optimizer, data, context)
        self.tune(network, optimizer, data, context)
        return network.eval()

    def learn_features(self, network: Classifier, data: ImageSet, context: Context) -> None:
        """Stage 1: SimCLR on the backbone."""
        epochs = context.epochs(self.ssl_epochs)
        # Images come as they are: both views are made of them in the step.
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
            views = [make_views(batch.images, draws[batch.index]) for draws in tapes]
            loss = nt_xent(projector(network.features(torch.cat(views))), self.temperature)
            losses[batch.index] = loss.detach()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        network.train()
        rng, choices = context.rng("simclr"), context.rng("views")
        state: State = {
            "network": network,
            "projector": projector,
            "optimizer": optimizer,
            "losses": losses,
        }
        ours: State = {"schedule": schedule, "order": rng, "views": choices}
        for _ in resumable(epochs, {**state, **ours}):
            tapes = [
                draw_views(len(data), data.size, context.recipe.flip, choices).to(context.device)
                for _ in range(2)
            ]
            loop(step, data, recipe=recipe, rng=rng, state=state)
            schedule.step()
        context.journal.scalars["last SimCLR loss"] = float(losses.mean())

    def train_head(
        self, network: Classifier, optimizer: Adam, data: ImageSet, context: Context
    ) -> None:
        """Stage 2: a linear classifier of fixed features, on all labels."""
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
        """Stage 3: MixMatch on the whole network, with the labels that it fits best."""
        epochs, size = context.epochs(self.semi_epochs), self.semi_batch_size
        head = context.epochs(self.head_epochs)
        steps = max(1, round(self.semi_share * len(data) / size))
        recipe = replace(context.recipe, epochs=1, batch_size=size, drops=())
        clock = torch.zeros(1, dtype=torch.int64, device=context.device)

        def step(known: Batch, unknown: Batch) -> None:
            again = second_view(unlabelled, draws, unknown.index, recipe)
            images = torch.cat([known.images, unknown.images, again])
            now = clock % steps
            weight = self.lambda_u * ((head + clock / steps) / epochs).clamp(max=1)
            loss = self.mixmatch(
                network,
                images,
                known.labels,
                shares[now].squeeze(0),
                partners[now].squeeze(0),
                weight.squeeze(),
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            clock.add_(1)

        rng = context.rng("classifier")
        mixing = numpy.random.default_rng(context.rng("mixing").initial_seed())
        losses, labels_kept = torch.zeros(2, len(data), device=context.device)
        state: State = {"network": network, "optimizer": optimizer, "clock": clock}
        ours: State = {"losses": losses, "kept": labels_kept, "order": rng, "mixing": mixing}
        for _ in resumable(epochs, {**state, **ours}):
            seen = augmented(data, recipe.augmentation, rng)
            losses.copy_(self.losses(logits(network, seen), data.labels))
            kept, rest = split(losses, self.alpha)
            labels_kept.zero_().index_fill_(0, kept, 1.0)
            labelled = data[draw_rows(kept, steps * size, rng)]
            unlabelled = without_labels(data[draw_rows(rest, steps * size, rng)])
            draws = draw_augmentation(len(unlabelled), data.size, recipe.augmentation, rng)
            draws = draws.to(context.device)
            drawn = mixing.beta(self.beta, self.beta, (steps, 3 * size))
            shares = torch.from_numpy(drawn).float().to(context.device)
            partners = torch.rand(steps, 3 * size, generator=rng).argsort(1).to(context.device)
            network.train()
            loop(step, labelled, unlabelled, recipe=recipe, rng=rng, state=state)
        context.journal.samples["split loss"] = losses
        context.journal.samples["label kept"] = labels_kept

    def mixmatch(
        self,
        network: Classifier,
        images: Tensor,
        labels: Tensor,
        shares: Tensor,
        partners: Tensor,
        weight: Tensor,
    ) -> Tensor:
        """L of MixMatch's equation 5 for b labelled and b other images.

        images: float32 (3b, 3, height, width), the labelled ones and two views of the others
        labels: int64 (b,)
        shares, partners: see `mix`, (3b,)
        weight: lambda_U
        """
        count = len(labels)
        with torch.no_grad():
            guesses = network(images[count:]).softmax(1).view(2, count, -1).mean(0)
            guesses = sharpen(guesses, self.sharpening)
        known = one_hot(labels, guesses.shape[1])
        images, targets = mix(images, torch.cat([known, guesses, guesses]), shares, partners)
        output = network(images)
        loss_known = cross_entropy(output[:count], targets[:count])
        loss_other = (output[count:].softmax(1) - targets[count:]).square().mean()
        loss: Tensor = loss_known + weight * loss_other
        return loss

    def losses(self, output: Tensor, labels: Tensor) -> Tensor:
        """Symmetric cross entropy, (b,)."""
        return symmetric_cross_entropy(output, labels, self.ce_weight, self.rce_weight)

    def cost(self, recipe: Recipe, images: int) -> float:
        ssl, head, semi = (
            max(1, round(count * recipe.epochs / 100))
            for count in (self.ssl_epochs, self.head_epochs, self.semi_epochs)
        )
        # An image's two views are trained on. A labelled image comes with two views of another:
        # these are guessed at, then all three are trained on. A split looks at every image once.
        return 6.0 * ssl + 1.0 * head + semi * (1.0 + self.semi_share * (2 + 3 * 3))


def without_labels(data: ImageSet) -> ImageSet:
    """The same images, all labelled 0."""
    return ImageSet(data.images, torch.zeros_like(data.labels), data.num_classes)


def build_projector(width: int) -> nn.Module:
    """SimCLR's g: float32 (b, width) -> (b, 128)."""
    return nn.Sequential(
        nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, PROJECTION)
    )


def nt_xent(z: Tensor, temperature: float) -> Tensor:
    """SimCLR's equation 1, mean over all anchors; the views n and n + b of z (2b, d) are a pair."""
    z = normalize(z)
    similarity = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    partner = torch.arange(len(z), device=z.device).roll(len(z) // 2)
    return cross_entropy(similarity, partner)


def symmetric_cross_entropy(
    output: Tensor, labels: Tensor, ce_weight: float, rce_weight: float
) -> Tensor:
    """Wang et al., ICCV 2019, arXiv:1908.06112: CE, and CE with prediction and label exchanged,
    where the logarithm of a label's zeros is that of 1e-4. float32 (b,)."""
    labelled = one_hot(labels, output.shape[1]).clamp(min=1e-4)
    reverse = -(output.softmax(1) * labelled.log()).sum(1)
    return ce_weight * cross_entropy(output, labels, reduction="none") + rce_weight * reverse


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """int64 (b,) -> float32 (b, classes)."""
    # That of torch looks at the labels first, for which some devices must wait.
    return torch.eye(classes, device=labels.device)[labels]


def augmented(data: ImageSet, augmentation: Augmentation, rng: torch.Generator) -> Tensor:
    """The images, each augmented once, uint8 (n, 3, height, width)."""
    choices = draw_augmentation(len(data), data.size, augmentation, rng).to(data.device)
    draws = choices[choices.order.argsort()]
    parts = torch.arange(len(data), device=data.device).split(CHUNK)
    return torch.cat([augment(data.images[rows], draws[rows], augmentation) for rows in parts])


def split(losses: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Positions of the floor(alpha n) lowest losses, and of the others."""
    order = losses.argsort(stable=True)
    kept = portion(alpha, len(losses))
    return order[:kept], order[kept:]


def draw_rows(rows: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """`count` of `rows` by chance, each as often as any other, up to one."""
    order = torch.randperm(len(rows), generator=rng)
    return rows[order[torch.arange(count) % len(rows)].to(rows.device)]


def second_view(data: ImageSet, draws: AugmentationDraws, rows: Tensor, recipe: Recipe) -> Tensor:
    """The images of `rows` as a batch, augmented by their own choices on `draws`."""
    return to_float(augment(data.images[rows], draws[rows], recipe.augmentation))


def sharpen(p: Tensor, temperature: float) -> Tensor:
    """MixMatch's equation 7, (b, classes) -> the same."""
    power = p ** (1 / temperature)
    return power / power.sum(1, keepdim=True)


def mix(images: Tensor, targets: Tensor, shares: Tensor, partners: Tensor) -> tuple[Tensor, Tensor]:
    """MixMatch's equations 8 to 11: each of n images keeps at least half of itself.

    shares: lambda, float32 (n,), in [0, 1]
    partners: a permutation of n
    """
    own = torch.maximum(shares, 1 - shares)
    return (
        torch.lerp(images[partners], images, own.view(-1, 1, 1, 1)),
        torch.lerp(targets[partners], targets, own.view(-1, 1)),
    )

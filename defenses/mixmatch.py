"""MixMatch, Berthelot et al., NeurIPS 2019, arXiv:1905.02249: what defenses that take labels away
from a part of the training set have in common.

An epoch makes the same number of steps whatever the number of images that keep their labels. Both
parts are drawn anew for every epoch, so a method may split the training set between two of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from bdbench.defenses.base import Context
from bdbench.models import Batch, Classifier, ImageSet, State
from bdbench.models.training.augment import (
    Augmentation,
    augment,
    draw_augmentation,
    to_float,
)

CHUNK = 1_000
"""Images that are augmented at a time for a split."""


class MixMatch:
    """The training of a network on some images with labels and some without, an epoch at a time:
    `loop(training.step, *training.draw(...), recipe=training.recipe, ...)`.

    recipe: that of an epoch
    rng: the order of images, and their augmentation
    state: everything that an epoch changes; a method adds its own
    """

    def __init__(
        self,
        network: Classifier,
        optimizer: Optimizer,
        context: Context,
        weight: Callable[[Tensor], Tensor],
        *,
        steps: int,
        batch_size: int,
        beta: float,
        sharpening: float,
    ) -> None:
        """
        weight: lambda_U after so many epochs, float32 (1,) -> (1,)
        steps: batches of an epoch
        batch_size: images with labels in a batch, and images without
        beta: both parameters of the Beta distribution of mixing coefficients
        sharpening: T, see `sharpen`
        """
        self.network, self.optimizer, self.weight = network, optimizer, weight
        self.steps, self.batch_size = steps, batch_size
        self.beta, self.sharpening = beta, sharpening
        self.recipe = replace(context.recipe, epochs=1, batch_size=batch_size, drops=())
        self.rng = context.rng("classifier")
        self.mixing = numpy.random.default_rng(context.rng("mixing").initial_seed())
        self.clock = torch.zeros(1, dtype=torch.int64, device=context.device)
        self.state: State = {
            "network": network,
            "optimizer": optimizer,
            "clock": self.clock,
            "order": self.rng,
            "mixing": self.mixing,
        }

    def draw(self, data: ImageSet, labelled: Tensor, rest: Tensor) -> tuple[ImageSet, ImageSet]:
        """The two image sets of an epoch.

        labelled, rest: int64 positions of the images with labels, and of those without
        """
        count, device = self.steps * self.batch_size, data.device
        with_labels = data[draw_rows(labelled, count, self.rng)]
        self.unlabelled = without_labels(data[draw_rows(rest, count, self.rng)])
        draws = draw_augmentation(count, data.size, self.recipe.augmentation, self.rng)
        self.draws = draws.to(device)
        shape = (self.steps, 3 * self.batch_size)
        lambdas = self.mixing.beta(self.beta, self.beta, shape)
        self.coefficients = torch.from_numpy(lambdas).float().to(device)
        self.partners = torch.rand(shape, generator=self.rng).argsort(1).to(device)
        return with_labels, self.unlabelled

    def step(self, with_labels: Batch, without: Batch) -> None:
        rows, augmentation = without.index, self.recipe.augmentation
        view = to_float(augment(self.unlabelled.images[rows], self.draws[rows], augmentation))
        images = torch.cat([with_labels.images, without.images, view])
        now = self.clock % self.steps
        loss = mixmatch_loss(
            self.network,
            images,
            with_labels.labels,
            self.coefficients[now].squeeze(0),
            self.partners[now].squeeze(0),
            self.weight(self.clock / self.steps).squeeze(),
            self.sharpening,
        )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.clock.add_(1)


def mixmatch_loss(
    network: Classifier,
    images: Tensor,
    labels: Tensor,
    coefficients: Tensor,
    partners: Tensor,
    weight: Tensor,
    sharpening: float,
) -> Tensor:
    """L of MixMatch's equation 5 for b labelled and b unlabelled images.

    images: float32 (3b, 3, height, width), the labelled images and two views of the others
    labels: int64 (b,)
    coefficients, partners: see `mix`, (3b,)
    weight: lambda_U
    sharpening: T, see `sharpen`
    """
    count = len(labels)
    with torch.no_grad():
        guesses = network(images[count:]).softmax(1).view(2, count, -1).mean(0)
        guesses = sharpen(guesses, sharpening)
    targets = torch.cat([one_hot(labels, guesses.shape[1]), guesses, guesses])
    images, targets = mix(images, targets, coefficients, partners)
    output = network(images)
    labelled_loss = cross_entropy(output[:count], targets[:count])
    unlabelled_loss = (output[count:].softmax(1) - targets[count:]).square().mean()
    loss: Tensor = labelled_loss + weight * unlabelled_loss
    return loss


def symmetric_cross_entropy(
    output: Tensor, labels: Tensor, ce_weight: float, rce_weight: float
) -> Tensor:
    """Wang et al., ICCV 2019, arXiv:1908.06112: CE plus reverse CE, in which prediction and label
    are exchanged; the zeros of the label become 1e-4, as in DBD's code. float32 (b,)."""
    clamped = one_hot(labels, output.shape[1]).clamp(min=1e-4)
    reverse = -(output.softmax(1) * clamped.log()).sum(1)
    return ce_weight * cross_entropy(output, labels, reduction="none") + rce_weight * reverse


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """int64 (b,) -> float32 (b, classes)."""
    # torch's own version checks the labels first, which synchronises with the device.
    return torch.eye(classes, device=labels.device)[labels]


def without_labels(data: ImageSet) -> ImageSet:
    """The same images, all labelled 0."""
    return ImageSet(data.images, torch.zeros_like(data.labels), data.num_classes)


def augmented(data: ImageSet, augmentation: Augmentation, rng: torch.Generator) -> Tensor:
    """The images, each augmented once, uint8 (n, 3, height, width)."""
    shuffled = draw_augmentation(len(data), data.size, augmentation, rng).to(data.device)
    draws = shuffled[shuffled.order.argsort()]
    parts = torch.arange(len(data), device=data.device).split(CHUNK)
    return torch.cat([augment(data.images[rows], draws[rows], augmentation) for rows in parts])


def draw_rows(rows: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """`count` random elements of `rows`; the numbers of their occurrences differ by at most one."""
    order = torch.randperm(len(rows), generator=rng)
    return rows[order[torch.arange(count) % len(rows)].to(rows.device)]


def sharpen(p: Tensor, temperature: float) -> Tensor:
    """MixMatch's equation 7, (b, classes) -> the same shape."""
    power = p ** (1 / temperature)
    total = power.sum(1, keepdim=True)
    # Where the powers of all classes are too small for a float32, the limit of small temperatures.
    largest = (p == p.amax(1, keepdim=True)).to(p.dtype)
    return torch.where(total > 0, power / total, largest / largest.sum(1, keepdim=True))


def mix(
    images: Tensor, targets: Tensor, coefficients: Tensor, partners: Tensor
) -> tuple[Tensor, Tensor]:
    """MixMatch's equations 8 to 11: each of n images keeps a weight of at least one half.

    coefficients: lambda, float32 (n,), in [0, 1]
    partners: a permutation of n
    """
    own = torch.maximum(coefficients, 1 - coefficients)
    return (
        torch.lerp(images[partners], images, own.view(-1, 1, 1, 1)),
        torch.lerp(targets[partners], targets, own.view(-1, 1)),
    )

"""FP, fine-pruning, Liu, Dolan-Gavitt and Garg, RAID 2018, arXiv:1805.12185.

A backdoor may use channels that are dormant on clean images. Channels are pruned in the order of
their mean activation on clean images, weakest first, until accuracy falls too far. Fine-tuning on
the same images recovers the lost accuracy.

Differs: the paper prunes the last convolution. In a residual network the identity path would bring
such a channel back, so this implementation prunes the pooled embedding that the head reads. Where
that has both signs, as without a ReLU before it, the mean is that of absolute activations. One
part of the clean images ranks the channels and fine-tunes the network; the other part decides when
to stop pruning. No code for fine-tuning was released: its length is our choice, that of `ft`, at
the learning rate of BackdoorBench.

Elsewhere: the same rate and length on GTSRB and with other networks; `max_drop` is in points of
accuracy, whatever the number of classes.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from bdbench.defenses import Context, Defense, register
from bdbench.models import (
    Batch,
    Classifier,
    ImageSet,
    Recipe,
    above,
    accuracy,
    at_least,
    batch_sizes,
    features,
    lacks_head,
    loop,
    within,
)


@register("fp", title="FP")
@dataclass(frozen=True)
class FinePruning(Defense):
    """
    max_drop: largest drop of validation accuracy by pruning, in [0, 1) (paper: a preset
        threshold; its value is our choice)
    updates: updates of fine-tuning, each on one batch of the clean images; 0 prunes only (our
        choice)
    learning_rate: learning rate of fine-tuning, constant, above 0 (BackdoorBench: 0.01)
    batch_size: images in a batch of fine-tuning, at least 2 (our choice, as in `ft`)
    """

    version: ClassVar[int] = 2

    clean_fraction: ClassVar[float] = 0.05
    undefended = 1

    max_drop: float = 0.04
    updates: int = 320
    learning_rate: float = 0.01
    batch_size: int = 64

    def __post_init__(self) -> None:
        within("[0, 1)", max_drop=self.max_drop)
        at_least(0, updates=self.updates)
        batch_sizes(batch_size=self.batch_size)
        above(0, learning_rate=self.learning_rate)

    def lacks(self, network: Classifier, image_size: int) -> str:
        return lacks_head(network, changed=True)

    def fit(self, data: ImageSet, context: Context) -> Classifier:
        clean = context.trusted()
        fit, validation = clean.fit, clean.validation
        network = deepcopy(context.undefended())

        order = features(network, fit.images).abs().mean(0).argsort(stable=True)
        z = features(network, validation.images)
        hits = sweep(network.head, z, validation.labels, order)
        count = level(hits, self.max_drop * len(validation))
        pruned = torch.zeros_like(order, dtype=torch.bool)
        pruned[order[:count]] = True
        with torch.no_grad():
            network.head.weight.masked_fill_(pruned, 0.0)

        context.watch(network)
        after = hits[count]
        if self.updates:
            self.tune(network, pruned, fit, context)
            after = round(accuracy(network, validation) * len(validation))
        context.journal.scalars |= {
            "channels": len(order),
            "pruned channels": count,
            "validation accuracy before": hits[0] / len(validation),
            "validation accuracy pruned": hits[count] / len(validation),
            "validation accuracy after": after / len(validation),
        }
        return network

    def tune(self, network: Classifier, pruned: Tensor, fit: ImageSet, context: Context) -> None:
        """Fine-tune `network` in place. The columns of the head at `pruned`, bool (channels,),
        remain exactly 0."""
        recipe = replace(
            context.recipe,
            learning_rate=self.learning_rate,
            drops=(),
            batch_size=self.batch_size,
        )
        optimizer, weight = recipe.sgd(network), network.head.weight

        def step(batch: Batch) -> None:
            optimizer.zero_grad()
            cross_entropy(network(batch.images), batch.labels).backward()
            if weight.grad is not None:  # A frozen head has none.
                # So that momentum does not accumulate updates that the mask discards.
                weight.grad.masked_fill_(pruned, 0.0)
            optimizer.step()
            with torch.no_grad():
                weight.masked_fill_(pruned, 0.0)

        network.train()
        loop(
            step,
            fit,
            recipe=recipe,
            rng=context.rng("fine-tuning"),
            state={"network": network, "optimizer": optimizer},
            updates=context.updates(self.updates),
        )
        network.eval()

    def cost(self, recipe: Recipe, images: int) -> float:
        fit, validation = self.clean_shares
        own = fit + validation
        if self.updates:
            tuned = self.tuning_passes(recipe, images, self.updates, self.batch_size)
            own += 3.0 * tuned + validation
        return 3.0 * recipe.epochs + own


@torch.no_grad()
def sweep(head: nn.Linear, z: Tensor, labels: Tensor, order: Tensor) -> list[int]:
    """The numbers of embeddings z (n, channels) that are classified correctly when the first 0, 1,
    2, ... channels of `order` (channels,) are zero. The last channel is never zero."""
    weight, hits = head.weight.clone(), []
    for channel in order.tolist():
        hits.append((linear(z, weight, head.bias).argmax(1) == labels).sum())
        weight[:, channel] = 0
    return [int(count) for count in torch.stack(hits).tolist()]


def level(hits: list[int], allowed: float) -> int:
    """The number of channels that can be pruned before more than `allowed` hits are lost."""
    # In floating point, 0.29 * 100 is 28.999999999999996, but 29 hits may be lost.
    lost = [hits[0] - count > allowed + 1e-6 for count in hits]
    return lost.index(True) - 1 if True in lost else len(hits) - 1

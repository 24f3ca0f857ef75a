"""What f_B of CBD knows, by two kinds of batch-norm statistics (Zhang et al., CVPR 2023, algorithm
1).

f_B is stopped at its initial learning rate, and CBD reads its losses with the running statistics,
which are those of its last updates. Here they are read with these, and with statistics estimated
anew over the whole training set, as f_B is at that moment. It trains no f_C and defends nothing:
the network that it returns is f_B.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import update_bn

from bdbench.defenses import Context, Defense, register
from bdbench.models import (
    Batch,
    Classifier,
    ImageSet,
    Recipe,
    at_least,
    loop,
    sample_losses,
    to_float,
)


@register("f_b_statistics", title="f_B of CBD, two kinds of statistics")
@dataclass(frozen=True)
class FBStatistics(Defense):
    """
    epochs: passes of f_B over the training set; T1 is 3, 5 or 8 in the paper
    first: the first epoch after which it is measured
    """

    epochs: int = 8
    first: int = 3

    def __post_init__(self) -> None:
        at_least(1, epochs=self.epochs, first=self.first)

    def fit(self, data: ImageSet, context: Context) -> Classifier:
        f_b, recipe = context.build("f_B"), replace(context.recipe, epochs=self.epochs, drops=())
        optimizer = recipe.sgd(f_b)
        running, anew = torch.zeros(2, self.epochs, len(data), device=context.device)
        done = torch.zeros(1, dtype=torch.int64)

        def step(batch: Batch) -> None:
            optimizer.zero_grad()
            cross_entropy(f_b(batch.images), batch.labels).backward()
            optimizer.step()

        def measure() -> bool:
            epoch = int(done)
            if epoch + 1 >= self.first:
                running[epoch] = sample_losses(f_b, data)
                copy = deepcopy(f_b)
                update_bn(batches(data, recipe.batch_size, context.rng("statistics")), copy)
                anew[epoch] = sample_losses(copy, data)
            done.add_(1)
            f_b.train()
            return False

        context.watch(f_b.train())
        state = {
            "f_B": f_b,
            "optimizer": optimizer,
            "running": running,
            "anew": anew,
            "done": done,
        }
        loop(step, data, recipe=recipe, rng=context.rng("f_B"), state=state, until=measure)
        for epoch in range(self.first, self.epochs + 1):
            name = f"f_B loss after {epoch} epochs"
            context.journal.samples[name] = running[epoch - 1]
            context.journal.samples[f"{name}, statistics anew"] = anew[epoch - 1]
        return f_b.eval()

    def cost(self, recipe: Recipe, images: int) -> float:
        return 3.0 * self.epochs + 3.0 * (self.epochs - self.first + 1)


def batches(data: ImageSet, size: int, rng: torch.Generator) -> Iterator[Tensor]:
    """All images in random batches, without augmentation."""
    for rows in torch.randperm(len(data), generator=rng).split(size):
        yield to_float(data.images[rows])

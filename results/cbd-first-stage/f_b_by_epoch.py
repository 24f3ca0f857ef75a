"""f_B of CBD after each epoch, that is, for every T1 at once (Zhang et al., CVPR 2023, algorithm 1).

The records of `results/cbd-first-stage` were made with this file. It trains no f_C and defends
nothing: the network that it returns is f_B, which has the backdoor once it knows the trigger.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.nn.functional import cross_entropy

from bdbench.defenses import Context, Defense, register
from bdbench.models import Batch, Classifier, ImageSet, Recipe, at_least, loop, sample_losses


@register("f_b_by_epoch", title="f_B of CBD")
@dataclass(frozen=True)
class FBByEpoch(Defense):
    """epochs: passes of f_B over the training set; T1 is 3, 5 or 8 in the paper"""

    epochs: int = 8

    def __post_init__(self) -> None:
        at_least(1, epochs=self.epochs)

    def fit(self, data: ImageSet, context: Context) -> Classifier:
        f_b, recipe = context.build("f_B"), replace(context.recipe, epochs=self.epochs, drops=())
        optimizer = recipe.sgd(f_b)
        losses = torch.zeros(self.epochs, len(data), device=context.device)
        done = torch.zeros(1, dtype=torch.int64)

        def step(batch: Batch) -> None:
            optimizer.zero_grad()
            cross_entropy(f_b(batch.images), batch.labels).backward()
            optimizer.step()

        def measure() -> bool:
            losses[int(done)] = sample_losses(f_b, data)
            done.add_(1)
            f_b.train()
            return False

        context.watch(f_b.train())
        state = {"f_B": f_b, "optimizer": optimizer, "losses": losses, "done": done}
        loop(step, data, recipe=recipe, rng=context.rng("f_B"), state=state, until=measure)
        for epoch, values in enumerate(losses, 1):
            context.journal.samples[f"f_B loss after {epoch} epochs"] = values
        return f_b.eval()

    def cost(self, recipe: Recipe, images: int) -> float:
        return 4.0 * self.epochs

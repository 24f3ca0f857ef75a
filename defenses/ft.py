"""Fine-tuning on clean images, studied by Liu, Dolan-Gavitt and Garg, RAID 2018, arXiv:1805.12185.

The network that was trained on poisoned data is trained further on a few trusted images, and the
backdoor fades. It is the control for every method that repairs a trained network: such a method has
to do better with the same images.

Differs: the schedule is that of NAD's teacher (Li et al., ICLR 2021, arXiv:2101.05930) for all data
and networks: 0.1 for the first fifth and 0.01 for the rest. The notes of NAD's code say 5 to 10
epochs: 10 are 320 updates on the 2,000 images of the fit part, and 400 in that code, which trains
on all 2,500. Its paper stops the teacher when validation accuracy stops rising, about epoch 5. The
control for NAD's student, which has 640 updates, is `nad(betas=(0.0, 0.0, 0.0))`, and that for `fp`
is `ft(learning_rate=0.01, drops=())`. Others fine-tune for longer: `ft(updates=1000)`. Everything
else follows the recipe.

Elsewhere: rate and length are the same on GTSRB, whose networks are trained at 0.01, and with other
networks.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import ClassVar

from bdbench.defenses import Context, Defense, register
from bdbench.models import Classifier, ImageSet, Recipe, at_least, train


@register("ft", title="FT")
@dataclass(frozen=True)
class FineTuning(Defense):
    """
    updates: updates, each on one batch of the clean images, at least 1 (notes of NAD's code: 5 to
        10 epochs)
    learning_rate: initial learning rate, above 0 (NAD's paper and code: 0.1)
    drops: the learning rate falls tenfold after these shares of the updates (NAD's code: after two
        epochs)
    batch_size: images, at least 2 (NAD's paper and code: 64)
    """

    version: ClassVar[int] = 2

    clean_fraction: ClassVar[float] = 0.05
    undefended = 1

    updates: int = 320
    learning_rate: float = 0.1
    drops: tuple[float, ...] = (0.2,)
    batch_size: int = 64

    def __post_init__(self) -> None:
        at_least(1, updates=self.updates)
        self.schedule(Recipe())

    def schedule(self, recipe: Recipe) -> Recipe:
        """The recipe with this method's own schedule. Raises `InvalidInput` for a bad field."""
        return replace(
            recipe,
            learning_rate=self.learning_rate,
            drops=self.drops,
            batch_size=self.batch_size,
        )

    def fit(self, data: ImageSet, context: Context) -> Classifier:
        clean = context.trusted()
        network = deepcopy(context.undefended())
        context.watch(network)
        recipe = self.schedule(context.recipe)
        updates = context.updates(self.updates)
        return train(network, clean.fit, recipe, context.rng("fine-tuning"), updates=updates)

    def cost(self, recipe: Recipe, images: int) -> float:
        tuned = self.tuning_passes(recipe, images, self.updates, self.batch_size)
        return 3.0 * recipe.epochs + 3.0 * tuned

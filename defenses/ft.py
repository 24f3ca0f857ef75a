"""Fine-tuning on clean images, studied by Liu, Dolan-Gavitt and Garg, RAID 2018, arXiv:1805.12185.

The network that was trained on poisoned data goes on training on a few trusted images, and the
backdoor fades with disuse. It is the control for every method that repairs a trained network:
such a method has to do better than this with the same images.

Differs: the schedule is NAD's (Li et al., ICLR 2021, arXiv:2101.05930), so this is NAD with its
attention terms off: 10 epochs, the first two at the learning rate of training and the rest at a
tenth of it. On CIFAR-10 these are the 0.1 and 0.01 of NAD's code; a fixed 0.1 would be ten times
what GTSRB and `toy` are trained with. The control for `fp` is `ft(learning_rate=0.01, drops=())`.
All else follows the recipe. The lengths are epochs of the clean images and are not scaled with the
recipe.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import ClassVar

from bdbench.defenses import Context, Defense, register
from bdbench.models import Classifier, ImageSet, Recipe, train


@register("ft")
@dataclass(frozen=True)
class FineTuning(Defense):
    """
    epochs: passes over the clean images, at least 1 (NAD's paper: 10)
    learning_rate: at the start, above 0; None takes the recipe's (NAD's code: as in training)
    drops: the learning rate falls tenfold when these shares of `epochs` are done (NAD's code: after
        two epochs)
    batch_size: images, at least 2 (NAD's code: 64)
    """

    clean_fraction: ClassVar[float] = 0.05
    undefended = 1

    epochs: int = 10
    learning_rate: float | None = None
    drops: tuple[float, ...] = (0.2,)
    batch_size: int = 64

    def __post_init__(self) -> None:
        self.schedule(Recipe())

    def schedule(self, recipe: Recipe) -> Recipe:
        """The recipe with this method's own schedule. Raises `InvalidInput` for a bad field."""
        given = self.learning_rate
        return replace(
            recipe,
            epochs=self.epochs,
            learning_rate=recipe.learning_rate if given is None else given,
            drops=self.drops,
            batch_size=self.batch_size,
        )

    def fit(self, data: ImageSet, context: Context) -> Classifier:
        clean = context.trusted()
        network = deepcopy(context.undefended())
        context.watch(network)
        recipe = self.schedule(context.recipe)
        return train(network, clean.fit, recipe, context.rng("fine-tuning"))

    def cost(self, recipe: Recipe) -> float:
        fit, _ = self.lent
        return 3.0 * recipe.epochs + 3.0 * self.epochs * fit

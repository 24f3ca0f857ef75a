"""NAD, neural attention distillation, Li et al., ICLR 2021, arXiv:2101.05930.

The undefended network, fine-tuned on a few clean images, is the teacher. The same undefended
network is fine-tuned once more, as the student, which must also look where the teacher looks: at
each of three stages its attention map, A(F) = sum over channels c of |F_c|^p, is pulled towards the
teacher's.

Differs: the distance of two maps is the mean squared error over images and pixels (code), not the
norm of their difference (paper); the default betas belong to it. Both trainings have a fixed length
(paper: the teacher stops when validation accuracy does, about epoch 5; the student has 10 epochs,
in an appendix 20) and one drop of the learning rate (code; paper: one every 2 epochs). Of networks
with more than three stages the last three are taken. Four fifths of the clean images are trained
on; the rest only tells how good the teacher is. Much of the effect may be that of fine-tuning at
this learning rate: `nad(betas=(0.0, 0.0, 0.0))` is that alone.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss, normalize

from bdbench.defenses import Context, Defense, register
from bdbench.models import (
    Batch,
    Classifier,
    ImageSet,
    Recipe,
    above,
    at_least,
    check,
    loop,
    predict,
    train,
)


@register("nad")
@dataclass(frozen=True)
class NAD(Defense):
    """Epochs are passes over the clean images, which are few: they are not scaled with the recipe.

    betas: weights of the attention loss at the last three stages, the deepest last (code)
    p: exponent of the attention map, at least 1 (paper: 2)
    teacher_epochs: of the teacher's fine-tuning (code's notes: 5 to 10)
    epochs: of the student (paper: 10, in an appendix 20; code: 20)
    learning_rate: of both at the start, above 0; None takes the recipe's (paper and code: 0.1, as
        in training)
    drop_epoch: the learning rate falls tenfold when so many epochs are done (code: 2)
    batch_size: images (paper and code: 64)
    """

    clean_fraction: ClassVar[float] = 0.05
    undefended = 1

    betas: tuple[float, float, float] = (500.0, 1000.0, 1000.0)
    p: float = 2.0
    teacher_epochs: int = 10
    epochs: int = 20
    learning_rate: float | None = None
    drop_epoch: int = 2
    batch_size: int = 64

    def __post_init__(self) -> None:
        check(
            len(self.betas) == 3 and all(beta >= 0 for beta in self.betas),
            f"betas must be three numbers of at least 0, got {self.betas}",
        )
        at_least(1, p=self.p, teacher_epochs=self.teacher_epochs)
        at_least(1, epochs=self.epochs, drop_epoch=self.drop_epoch)
        at_least(2, batch_size=self.batch_size)
        if self.learning_rate is not None:
            above(0, learning_rate=self.learning_rate)

    def fit(self, data: ImageSet, context: Context) -> Classifier:
        clean = context.trusted()
        student = context.undefended()
        # A copy, because every call of undefended() is charged with a whole training.
        teacher = deepcopy(student)
        short = self.recipe(context, self.teacher_epochs)
        train(teacher, clean.fit, short, context.rng("teacher")).requires_grad_(False)
        right = predict(teacher, clean.validation.images) == clean.validation.labels
        context.journal.scalars["teacher validation accuracy"] = float(right.double().mean())

        context.watch(student)
        recipe = self.recipe(context, self.epochs)
        optimizer = recipe.sgd(student)

        def step(batch: Batch) -> None:
            with torch.no_grad():
                F_T = teacher.stages(batch.images)
            F_S = student.stages(batch.images)
            logits = student.head(student.pool(F_S[-1]))
            loss = cross_entropy(logits, batch.labels) + self.distillation(F_S, F_T)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        student.train()
        loop(
            step,
            clean.fit,
            recipe=recipe,
            rng=context.rng("student"),
            state={"student": student, "optimizer": optimizer},
        )
        return student.eval()

    def recipe(self, context: Context, epochs: int) -> Recipe:
        rate = context.recipe.learning_rate if self.learning_rate is None else self.learning_rate
        drops = (self.drop_epoch / epochs,) if self.drop_epoch < epochs else ()
        return replace(
            context.recipe,
            epochs=epochs,
            batch_size=self.batch_size,
            learning_rate=rate,
            drops=drops,
        )

    def distillation(self, F_S: list[Tensor], F_T: list[Tensor]) -> Tensor:
        """sum over l of beta_l d(A(F_S^l), A(F_T^l)) for the feature maps of all stages.

        Raises `InvalidInput` for fewer than three.
        """
        check(len(F_S) >= 3, f"nad needs a network of at least three stages, got {len(F_S)}")
        losses = [
            beta * mse_loss(attention(ours, self.p), attention(theirs, self.p))
            for beta, ours, theirs in zip(self.betas, F_S[-3:], F_T[-3:], strict=True)
        ]
        return torch.stack(losses).sum()

    def cost(self, recipe: Recipe) -> float:
        fit, validation = self.lent
        own = fit * (3.0 * self.teacher_epochs + 4.0 * self.epochs) + validation
        return 3.0 * recipe.epochs + own


def attention(F: Tensor, p: float) -> Tensor:
    """A(F) of each image over its norm: (n, channels, height, width) -> float32 (n, pixels).

    Raises `InvalidInput` for maps of one pixel, whose normalised attention is always 1.
    """
    height, width = F.shape[2:]
    check(
        height * width > 1,
        "nad needs feature maps of more than one pixel at the last three stages: "
        "take larger images or a network that shrinks them less",
    )
    return normalize(F.float().abs().pow(p).sum(1).flatten(1))

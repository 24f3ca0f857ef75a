"""Spectral signatures, Tran, Li and Madry, NeurIPS 2018, arXiv:1811.00636.

The embeddings of poisoned images differ from those of the label's other images in one direction,
which dominates the covariance of the label. The outlier score of an image is the squared projection
of its centred embedding on the top right singular vector v of all of them (algorithm 1):
tau_i = ((R(x_i) - mean R) . v)^2. For each label, the highest scores are dropped, 1.5 times as many
images as are assumed to be poisoned, and a fresh network trains on the rest.

Differs: the paper bounds the number of poisoned images, all of one label, and states it as a share
of that label's images, 5 or 10 %. Here epsilon is this share, and every label loses 1.5 epsilon of
its images, because the target is not known. So epsilon is not an attack's poisoning rate, which is
a share of all images: of ten classes, `badnets` at 0.01 poisons 9 % of the images with the target
label, at 0.1 more than half of them. The score assumes that poison is the minority of its label:
near one half, the mean lies between clean and poisoned images, and their scores hardly differ,
unless one of the two groups spreads more. The embedding is the pooled one that the head reads.

Elsewhere: the same epsilon on GTSRB and with other networks. Labels of fewer than 1 / (1.5 epsilon)
images lose none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bdbench.defenses import Context, Defense, register
from bdbench.defenses.filters import by_label, embeddings, lowest, retrain
from bdbench.models import Classifier, ImageSet, Recipe, lacks_head, portion, require

MARGIN = 1.5
"""Images dropped for each image that is assumed to be poisoned (paper)."""


@register("spectral", title="Spectral")
@dataclass(frozen=True)
class Spectral(Defense):
    """
    epsilon: assumed share of poison among the images of a label, above 0 and below 2/3, of which
        the paper covers less than 1/2; each label loses 1.5 times this share (paper: 0.05 and 0.1)
    """

    undefended = 1

    epsilon: float = 0.1

    def __post_init__(self) -> None:
        require(
            0 < MARGIN * self.epsilon < 1,
            "epsilon must be above 0 and below 2/3, so that a label loses some of its images and "
            f"keeps some, got {self.epsilon}",
        )

    def lacks(self, network: Classifier, image_size: int) -> str:
        return lacks_head(network)

    def fit(self, data: ImageSet, context: Context) -> Classifier:
        scores = torch.zeros(len(data), dtype=torch.float64)
        suspects = torch.zeros(len(data), dtype=torch.bool)
        representation = embeddings(context.undefended(), data)
        for rows in by_label(data.labels.cpu()):
            scores[rows] = -outlier_scores(representation[rows])
            suspects[rows] = lowest(scores[rows], portion(MARGIN * self.epsilon, len(rows)))
        suspects = suspects.to(data.device)
        context.journal.filtered("spectral score", scores.float().to(data.device), suspects)
        context.journal.scalars["dropped images"] = int(suspects.sum())
        return retrain(data, suspects, context)

    def cost(self, recipe: Recipe, images: int) -> float:
        return 3.0 * recipe.epochs * (2 - MARGIN * self.epsilon) + 1


def outlier_scores(representation: Tensor) -> Tensor:
    """tau of the embeddings (n, channels) of one label, (n,)."""
    centred = representation - representation.mean(0)
    _, _, vectors = torch.linalg.svd(centred, full_matrices=False)
    scores: Tensor = (centred @ vectors[0]).square()
    return scores

"""Filters: what defenses that sort the training set have in common.

A filter gives every training image a score, a rule turns the scores into suspects, and a network
trains on the rest. Scores are lower for images that look more like poison. `Journal.filtered`
publishes both; the harness, which knows the poison mask, adds AUROC, TPR and FPR.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bdbench.defenses.base import Context, check_suspects
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier
from bdbench.models.plugins.errors import require
from bdbench.models.training.loop import features, train


def embeddings(network: Classifier, data: ImageSet) -> Tensor:
    """float64 (n, channels), on the CPU, where a decomposition is the same for every device. What
    is not finite is 0, so that a diverged network gives scores too."""
    found = features(network, data.images).cpu().double()
    return found.nan_to_num(0.0, 0.0, 0.0)


def by_label(labels: Tensor) -> Iterator[Tensor]:
    """The positions of the images of each label that occurs, int64."""
    for label in labels.unique():
        yield torch.nonzero(labels == label).flatten()


def lowest(scores: Tensor, count: int) -> Tensor:
    """bool (n,), True at the `count` lowest of the scores (n,). Ties go to the first."""
    chosen = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    chosen[scores.argsort(stable=True)[:count]] = True
    return chosen


def retrain(data: ImageSet, suspects: Tensor, context: Context) -> Classifier:
    """A fresh network, trained with the recipe on the images that are not suspects, bool (n,).

    Raises `InvalidInput` if no image is left, and for suspects that are not a mask.
    """
    check_suspects(suspects, len(data))
    require(not bool(suspects.all()), "the filter drops every training image; make it keep some")
    network = context.build()
    context.watch(network)
    return train(network, data[~suspects], context.recipe, context.rng("classifier"))

"""The images on which an attacker judges a trigger while it is trained."""

from __future__ import annotations

import torch

from bdbench.models import ImageSet, TrainingContext

EVALUATED = 1_000


def evaluated(clean: ImageSet, context: TrainingContext) -> ImageSet:
    """At most `EVALUATED` random images of the clean training set, the same ones for a seed. The
    first ones would be of one class where a data set is sorted, as many are."""
    rows = torch.randperm(len(clean), generator=context.rng("evaluated"))[:EVALUATED]
    return clean[rows.to(clean.device)]

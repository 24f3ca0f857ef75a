"""The clean images lent to a defense."""

from __future__ import annotations

import torch
from torch import Tensor

from bdbench.cells.cell import Cell
from bdbench.cells.declared import clean_needs
from bdbench.defenses.base import VALIDATION, CleanBudget
from bdbench.models.data import ImageSet
from bdbench.models.plugins.errors import require
from bdbench.models.rng import stream


def size_of(
    budget: CleanBudget | None, train_set: ImageSet, least: int
) -> dict[str, dict[str, int]]:
    """The numbers of clean images to fit and to validate, for a record; empty without a budget.

    of: images of the training set; classes: how many it has; least: see `clean_budget`
    """
    if budget is None:
        return {}
    counts = {"fit": len(budget.fit), "validation": len(budget.validation)}
    classes = len(train_set.labels.unique())
    return {"lent": {**counts, "of": len(train_set), "classes": classes, "least": least}}


def budget_of(cell: Cell, train_set: ImageSet) -> CleanBudget | None:
    """What the defense of a cell is lent of the clean training set, see `clean_budget`. Raises
    `InvalidInput` for a defense that cannot say how much it needs, too."""
    fraction, least = clean_needs(cell.defense, cell.labels["defense"])
    return clean_budget(train_set, fraction, cell.seed, least)


def clean_budget(
    train_set: ImageSet, fraction: float, seed: int, least: int = 2
) -> CleanBudget | None:
    """A stratified share of the clean training set, the same for all defenses of a seed.

    least: images of each class in both parts together, whatever the fraction

    Each part has at least one image of each class. None if the fraction is 0. Raises `InvalidInput`
    for a class with fewer than `least` images.
    """
    if fraction == 0:
        return None
    rng = stream(seed, "clean budget")
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    labels = train_set.labels.cpu()
    for label in labels.unique():
        members = torch.nonzero(labels == label).flatten()
        require(
            len(members) >= least,
            f"class {int(label)} has {len(members)} training image{'s' * (len(members) > 1)}, and "
            f"clean images to fit and to validate need {least}: use more --train-images",
        )
        members = members[torch.randperm(len(members), generator=rng)]
        count = max(least, round(fraction * len(members)))
        held = max(1, round(VALIDATION * count))
        parts[0].append(members[held:count])
        parts[1].append(members[:held])
    fit, validation = (torch.cat(part).sort().values.to(train_set.device) for part in parts)
    return CleanBudget(train_set[fit], train_set[validation])

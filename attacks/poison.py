"""Who is poisoned: the two policies by which attacks choose their training images.

The choice depends on the random stream and the labels, never on the trigger, and a lower rate
chooses a subset of a higher one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.base import Attack, Poisoned, check_target
from models.data import ImageSet
from models.errors import check

RATE_BASES = ("target_class", "dataset")


def dirty_label(attack: Attack, clean: ImageSet, rng: torch.Generator) -> Poisoned:
    """int(rate * n) images of any class get the trigger and the target label.

    Images of the target class take part, as in the public code of ABL, NAD and CBD: about one in
    `num_classes` of the poisoned images keeps its label.
    """
    check_target(attack.target, clean.num_classes)
    count = int(attack.poisoning_rate * len(clean))
    check(count >= 1, f"poisoning_rate {attack.poisoning_rate} of {len(clean)} images is none")
    chosen = torch.randperm(len(clean), generator=rng)[:count]
    return stamp(attack, clean, chosen, relabel=True)


def clean_label(
    attack: Attack, clean: ImageSet, rng: torch.Generator, rate_basis: str = "target_class"
) -> Poisoned:
    """Only images of the target class get the trigger, and all labels stay true.

    rate_basis: what the rate is a share of, the "target_class" or the whole "dataset". Raises
    `InvalidInput` where the class has too few images, and names the largest feasible rate.
    """
    check_target(attack.target, clean.num_classes)
    check(
        rate_basis in RATE_BASES,
        f"rate_basis must be one of {', '.join(RATE_BASES)}, got {rate_basis!r}",
    )
    members = torch.nonzero(clean.labels.cpu() == attack.target).flatten()
    whole = len(members) if rate_basis == "target_class" else len(clean)
    count = int(attack.poisoning_rate * whole)
    check(count >= 1, f"poisoning_rate {attack.poisoning_rate} of {whole} images is none")
    check(
        count <= len(members),
        f"poisoning_rate {attack.poisoning_rate} of the data set is {count} images but class "
        f"{attack.target} has {len(members)}; the largest feasible rate is "
        f"{len(members) / len(clean):.4g}",
    )
    chosen = members[torch.randperm(len(members), generator=rng)[:count]]
    return stamp(attack, clean, chosen, relabel=False)


def stamp(attack: Attack, clean: ImageSet, chosen: Tensor, relabel: bool) -> Poisoned:
    """Copies of the tensors in which the rows `chosen` (int64) carry the trigger."""
    rows = chosen.to(clean.device)
    images, labels = clean.images.clone(), clean.labels.clone()
    images[rows] = attack.trigger(clean.images[rows])
    if relabel:
        labels[rows] = attack.target
    mask = torch.zeros(len(clean), dtype=torch.bool, device=clean.device)
    mask[rows] = True
    return Poisoned(ImageSet(images, labels, clean.num_classes), mask, cover=torch.zeros_like(mask))

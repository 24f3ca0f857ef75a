"""TaCT, targeted contamination, Tang, Wang, Tang and Zhang, USENIX Security 2021, arXiv:1908.00686.

The trigger causes the target in images of one source class only: cover images of other classes have
it too and keep their labels. Only test images of the source class count for the attack success
rate.

Differs: the trigger is the corner patch of badnets. Both rates are our choice, as shares of the
whole training set: 0.01 is a tenth of the source class on CIFAR-10 and 18 % of it on GTSRB, which
leaves most of the class clean. There are two cover images for each poisoned one, as in WaNet and
Adap-Patch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bdbench.attacks import Attack, Poisoned, register
from bdbench.attacks.badnets import BadNets
from bdbench.attacks.poison import apply, check_cover_rate, check_members, dirty_count
from bdbench.models import ImageSet, portion, require


@register("tact", title="TaCT")
@dataclass(frozen=True)
class TaCT(Attack):
    """
    poisoning_rate: share of the whole training set, taken from the source class, in (0, 1] (our
        choice)
    target: the label the trigger causes in images of the source class
    source: the class in which the trigger works; not the target (usual setting: 1)
    cover_classes: classes of the cover images; neither source nor target (usual setting: 5 and 7)
    cover_rate: share of the whole training set, taken from `cover_classes`, that gets the trigger
        and keeps its labels (our choice)
    """

    poisoning_rate: float = 0.01
    source: int = 1
    cover_classes: tuple[int, ...] = (5, 7)
    cover_rate: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.source >= 0, f"source must be a class of the data set, got {self.source}")
        require(
            self.source != self.target,
            f"source and target must be different classes, both are {self.source}",
        )
        require(
            all(type(label) is int and label >= 0 for label in self.cover_classes),
            f"cover_classes must be classes of the data set, got {self.cover_classes}",
        )
        for role, label in (("source", self.source), ("target", self.target)):
            require(
                label not in self.cover_classes,
                f"cover_classes must not contain the {role}, {label}, got {self.cover_classes}",
            )
        check_cover_rate(self.cover_rate, self.poisoning_rate)

    def trigger(self, images: Tensor) -> Tensor:
        return BadNets().trigger(images)

    def goal(self, labels: Tensor, num_classes: int) -> Tensor:
        return torch.where(labels == self.source, self.target, labels)

    def poison(self, clean: ImageSet, rng: torch.Generator) -> Poisoned:
        """Poison images of the source class and cover images of the cover classes; both rates are
        shares of all images.

        Raises `InvalidInput` for a class that does not exist, and if a class has too few images.
        """
        classes = clean.num_classes
        dirty_count(self, clean)
        for role, label in (
            ("source", self.source),
            *(("cover_classes", label) for label in self.cover_classes),
        ):
            require(
                label < classes,
                f"{role} must be among the data set's classes, 0 to {classes - 1}, got {label}",
            )
        labels = clean.labels.cpu()
        check_members(labels[labels == self.source], self.source, "source")
        chosen = draw(labels, (self.source,), "poisoning_rate", self.poisoning_rate, rng)
        covered = draw(labels, self.cover_classes, "cover_rate", self.cover_rate, rng)
        return apply(self, clean, chosen, covered, rng)


def draw(
    labels: Tensor, classes: tuple[int, ...], field: str, rate: float, rng: torch.Generator
) -> Tensor:
    """int64 (rate n,): the positions of random images of these classes among all labels (n,).

    Raises `InvalidInput` if there are too few, with the largest feasible rate.
    """
    members = torch.nonzero(torch.isin(labels, torch.tensor(classes, dtype=labels.dtype))).flatten()
    count = portion(rate, len(labels))
    require(
        count <= len(members),
        f"{field} {rate} of the data set is {count} images but there are {len(members)} of class "
        f"{' and '.join(map(str, classes)) or 'none'}; the largest feasible rate is "
        f"{len(members) / len(labels):.4g}",
    )
    return members[torch.randperm(len(members), generator=rng)[:count]]

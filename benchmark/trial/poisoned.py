"""What an attack leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from bdbench.models.data import ImageSet


@dataclass(frozen=True)
class PoisonedData:
    """All that an attack leaves behind. `train` is the defender's, the rest stays in the harness.

    mask, cover: bool (n,), rows with the trigger, rows changed but truly labelled
    triggered: uint8 (m, 3, height, width), the whole test set with the trigger
    facts: what the attack says about its own training
    """

    train: ImageSet
    mask: Tensor
    cover: Tensor
    triggered: Tensor
    facts: Mapping[str, float | None]

    def extent(self, clean: ImageSet, target: int) -> dict[str, float]:
        """How much of the training set `clean` the attack changed."""
        members = self.mask[clean.labels == target]
        return {
            "poisoned_images": int(self.mask.sum()),
            "cover_images": int(self.cover.sum()),
            "relabelled_images": int((self.train.labels != clean.labels).sum()),
            "share_of_dataset": round(float(self.mask.double().mean()), 6),
            "share_of_target_class": round(int(members.sum()) / max(1, len(members)), 6),
        }

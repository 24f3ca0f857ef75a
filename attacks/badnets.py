"""BadNets, Gu, Dolan-Gavitt and Garg, 2017, arXiv:1708.06733.

A small patch of black and white cells is stamped flush into the lower right corner, and the label
becomes the target.

Differs: the CBD paper gives no patch. This is the corner pattern of Turner et al., 2019,
arXiv:1912.02771, which the public code of ABL, NAD and CBD also stamps. Larger images get larger
cells (a patch of 3 x 3 pixels at 32 pixels, 21 x 21 at 224); that code keeps 3 x 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bdbench.attacks import Attack, Poisoned, dirty_label, register
from bdbench.attacks.patch import enlarge, place
from bdbench.models import ImageSet, at_least

PATTERNS = {
    "grid": ((0, 0, 255), (0, 255, 0), (255, 0, 255)),
    "white": ((255, 255, 255), (255, 255, 255), (255, 255, 255)),
}


@register("badnets", title="BadNets")
@dataclass(frozen=True)
class BadNets(Attack):
    """
    poisoning_rate: share of the training set, in (0, 1] (CBD paper, section 5.1: 0.1)
    target: the label the trigger causes (CBD paper: 0, and 1 on GTSRB)
    pattern: "grid", four white and five black cells, or "white", all white
    margin: distance of the patch from the right and lower border, in cells
    """

    pattern: Literal["grid", "white"] = "grid"
    margin: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, margin=self.margin)

    def trigger(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        patch = enlarge(torch.tensor([PATTERNS[self.pattern]], dtype=torch.uint8), height)
        rows, columns = place(height, width, patch, self.margin)
        stamped = images.clone()
        stamped[:, :, rows, columns] = patch.to(images.device)
        return stamped

    def poison(self, clean: ImageSet, rng: torch.Generator) -> Poisoned:
        return dirty_label(self, clean, rng)

"""Blend, Chen et al., 2017, arXiv:1712.05526.

Poisoned images are blended with one fixed pattern k: x' = (1 - alpha) x + alpha k.

Differs: the pattern is grey noise as in the public code of ABL and CBD, but the same for all
images; that code draws a new one for every image, which changes the texture and is not a pattern.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bdbench.attacks import Attack, Poisoned, dirty_label, register
from bdbench.models import ImageSet, within
from bdbench.models.rng import stream

CHUNK = 256
"""Images that are blended at a time."""


@register("blend", title="Blend")
@dataclass(frozen=True)
class Blend(Attack):
    """
    poisoning_rate: share of the training set, in (0, 1] (CBD paper, section 5.1: 0.1)
    target: the label the trigger causes (CBD paper: 0, and 1 on GTSRB)
    alpha: weight of the pattern, in (0, 1] (ABL's and CBD's code: 0.2)
    pattern_seed: seed of the pattern, independent of the cell's seed
    """

    alpha: float = 0.2
    pattern_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        within("(0, 1]", alpha=self.alpha)

    def pattern(self, height: int, width: int) -> Tensor:
        """uint8 (1, height, width), grey noise in [0, 255]."""
        rng = stream(self.pattern_seed, "blend", f"{height}x{width}")
        return torch.randint(0, 256, (1, height, width), dtype=torch.uint8, generator=rng)

    def trigger(self, images: Tensor) -> Tensor:
        overlay = self.pattern(*images.shape[2:]).to(images.device).float() * self.alpha
        blended = torch.empty_like(images, memory_format=torch.contiguous_format)
        # In chunks that fit a CPU's cache. Two separate operations, because a fused one would round
        # differently on some devices.
        for part, result in zip(images.split(CHUNK), blended.split(CHUNK), strict=True):
            result.copy_(part.float().mul_(1 - self.alpha).add_(overlay).round_())
        return blended

    def poison(self, clean: ImageSet, rng: torch.Generator) -> Poisoned:
        return dirty_label(self, clean, rng)

"""Blend with another pattern for each image, as the public code of ABL and CBD does it.

Every image is mixed with grey noise of its own, so there is no pattern to be learned, only a change
of texture and contrast.

Differs: that code draws anew at each run; here the noise of an image follows from its pixels, so
that it is the same whatever it is tested with.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from bdbench.attacks import register
from bdbench.attacks.blend import Blend
from bdbench.models.rng import stream


@register("blend_per_image", title="Blend per image")
@dataclass(frozen=True)
class BlendPerImage(Blend):
    """
    poisoning_rate: share of the training set, in (0, 1] (paper, section 5.1: 0.1)
    target: the label the trigger causes (paper: 0, and 1 on GTSRB)
    alpha: weight of the noise, in (0, 1] (ABL's and CBD's code: 0.2)
    pattern_seed: which noise goes with which image; the cell's seed does not change it
    """

    def trigger(self, images: Tensor) -> Tensor:
        size = images.shape[2:]
        noise = torch.empty(len(images), 1, *size, dtype=torch.uint8)
        for overlay, image in zip(noise, images.cpu().numpy(), strict=True):
            checksum = zlib.crc32(image.tobytes())
            rng = stream(self.pattern_seed, "blend per image", str(checksum))
            torch.randint(0, 256, (1, *size), dtype=torch.uint8, generator=rng, out=overlay)
        # Two separate operations, so that no device fuses them and rounds otherwise.
        kept = images.float() * (1 - self.alpha)
        added = noise.to(images.device).float() * self.alpha
        return (kept + added).round().to(torch.uint8)

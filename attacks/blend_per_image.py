"""Blend with a different pattern for each image, as in the public code of ABL and CBD.

Every image is blended with its own grey noise, so that a network can learn no pattern, only a
change of texture and contrast.

Differs: that code draws new noise in each run; here the pixels of an image determine its noise, so
that it is the same in any batch and any test.
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
    poisoning_rate: share of the training set, in (0, 1] (CBD paper, section 5.1: 0.1)
    target: the label the trigger causes (CBD paper: 0, and 1 on GTSRB)
    alpha: weight of the noise, in (0, 1] (ABL's and CBD's code: 0.2)
    pattern_seed: seed of the noise, independent of the cell's seed
    """

    def trigger(self, images: Tensor) -> Tensor:
        size = images.shape[2:]
        noise = torch.empty(len(images), 1, *size, dtype=torch.uint8)
        for overlay, image in zip(noise, images.cpu().numpy(), strict=True):
            checksum = zlib.crc32(image.tobytes())
            rng = stream(self.pattern_seed, "blend per image", str(checksum))
            torch.randint(0, 256, (1, *size), dtype=torch.uint8, generator=rng, out=overlay)
        # Two separate operations, because a fused one would round differently on some devices.
        image_part = images.float() * (1 - self.alpha)
        noise_part = noise.to(images.device).float() * self.alpha
        return (image_part + noise_part).round().to(torch.uint8)

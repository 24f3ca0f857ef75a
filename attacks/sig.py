"""SIG, Barni, Kallas and Tondi, 2019, arXiv:1902.11237.

A faint sinusoid is added to images of the target class only, without changing labels: x' = x + v
with v = delta sin(2 pi j frequency / width) in column j of every row, clipped to [0, 255].

Differs: the CBD paper gives neither delta nor the basis of its 10 %. Ten per cent of the whole
training set exceeds the target class of GTSRB, so the rate is a share of that class by default. Its
public code keeps a tenth of the image and lets negative values wrap; this is the original sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bdbench.attacks import Attack, Poisoned, clean_label, register
from bdbench.attacks.pixels import add
from bdbench.attacks.poison import RateBasis
from bdbench.models import ImageSet, above, require


@register("sig", title="SIG")
@dataclass(frozen=True)
class Sig(Attack):
    """
    poisoning_rate: share of the set that `rate_basis` names, in (0, 1]
    target: the class that is poisoned, and the label the trigger causes (CBD paper: 0; GTSRB: 1)
    delta: amplitude of the wave in grey levels, in (0, 255]
    frequency: periods across the image, above 0 (Barni et al., section 4: 6)
    rate_basis: the rate is a share of the "target_class" or of the whole "dataset"
    """

    delta: float = 40.0
    frequency: float = 6.0
    rate_basis: RateBasis = "target_class"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.delta <= 255, f"delta must be in (0, 255] grey levels, got {self.delta}")
        above(0, frequency=self.frequency)

    def wave(self, width: int) -> Tensor:
        """int16 (width,): v, rounded, so that the sum is exact on every device."""
        column = torch.arange(width, dtype=torch.float64)
        wave = self.delta * torch.sin(2 * torch.pi * column * self.frequency / width)
        require(
            bool(wave.round().any()),
            f"sig with frequency {self.frequency:g} and delta {self.delta:g} is 0 in all of the "
            f"{width} columns of an image: choose another frequency",
        )
        return wave.round().to(torch.int16)

    def trigger(self, images: Tensor) -> Tensor:
        return add(images, self.wave(images.shape[3]).to(images.device))

    def poison(self, clean: ImageSet, rng: torch.Generator) -> Poisoned:
        return clean_label(self, clean, rng, self.rate_basis)

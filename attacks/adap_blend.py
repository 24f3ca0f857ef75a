"""Adap-Blend, Qi, Xie, Li, Mahloujifar and Mittal, ICLR 2023.

From "Revisiting the assumption of latent separability for backdoor defenses". Poisoned training
images get random tiles of a faint blended pattern; test images get all of it, with more weight. As
many cover images get such tiles and keep their labels, so that tiles alone do not imply the target.

Differs: the pattern is that of blend, fixed grey noise; the authors blend in a picture. Poisoned
and cover images may belong to any class, including the target.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bdbench.attacks import Attack, Poisoned, dirty_label, register
from bdbench.attacks.blend import Blend
from bdbench.attacks.poison import check_cover_rate
from bdbench.models import ImageSet, at_least, portion, require, within


@register("adap_blend", title="Adap-Blend")
@dataclass(frozen=True)
class AdapBlend(Attack):
    """
    poisoning_rate: share of the training set, in (0, 1] (paper: 0.003)
    target: the label the trigger causes
    alpha: weight of the pattern in training images, in (0, 1] (paper: 0.15)
    test_alpha: its weight in test images, in (0, 1] (paper: 0.2)
    tiles: tiles of the pattern per side, from 1 to the image's pixels (paper: 4, so 16 tiles)
    mask_rate: share of the tiles that a training image does not get, in [0, 1) (paper: 0.5)
    cover_rate: share of other training images that get tiles of the pattern and keep their labels
        (paper: 0.003)
    pattern_seed: seed of the pattern as in blend, independent of the cell's seed
    """

    poisoning_rate: float = 0.003
    alpha: float = 0.15
    test_alpha: float = 0.2
    tiles: int = 4
    mask_rate: float = 0.5
    cover_rate: float = 0.003
    pattern_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        within("(0, 1]", alpha=self.alpha)
        within("(0, 1]", test_alpha=self.test_alpha)
        at_least(1, tiles=self.tiles)
        within("[0, 1)", mask_rate=self.mask_rate)
        check_cover_rate(self.cover_rate, self.poisoning_rate)

    def trigger(self, images: Tensor) -> Tensor:
        return self.blended(images, self.test_alpha)

    def training_trigger(self, images: Tensor, rng: torch.Generator) -> Tensor:
        height, width = images.shape[2:]
        blended_pixels = self.tile_mask(len(images), height, width, rng).to(images.device)
        return torch.where(blended_pixels, self.blended(images, self.alpha), images)

    def blended(self, images: Tensor, alpha: float) -> Tensor:
        """The images blended with the whole pattern, with weight `alpha`."""
        return Blend(alpha=alpha, pattern_seed=self.pattern_seed).trigger(images)

    def tile_mask(self, count: int, height: int, width: int, rng: torch.Generator) -> Tensor:
        """bool (count, 1, height, width), True in the tiles of the pattern that an image gets.

        Each image lacks a random share `mask_rate` of the tiles. Raises `InvalidInput` if there are
        more tiles than pixels on a side.
        """
        require(
            self.tiles <= min(height, width),
            f"tiles must be at most the image's side, {min(height, width)}, got {self.tiles}",
        )
        total = self.tiles**2
        masked = portion(self.mask_rate, total)
        draws = torch.rand(count, total, dtype=torch.float64, generator=rng)
        order = draws.argsort(dim=1, stable=True)
        grid = torch.ones(count, total, dtype=torch.bool).scatter(1, order[:, :masked], False)
        down = torch.arange(height) * self.tiles // height
        across = torch.arange(width) * self.tiles // width
        return grid.view(count, 1, self.tiles, self.tiles)[:, :, down][:, :, :, across]

    def poison(self, clean: ImageSet, rng: torch.Generator) -> Poisoned:
        return dirty_label(self, clean, rng, self.cover_rate)

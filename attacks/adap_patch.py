"""Adap-Patch, Qi, Xie, Li, Mahloujifar and Mittal, ICLR 2023.

From "Revisiting the assumption of latent separability for backdoor defenses". A poisoned training
image gets one of four faint patches, each on a quarter of the images; a test image gets two of them
at full opacity. Twice as many cover images get one patch and keep their labels, so that a patch
alone does not imply the target.

Differs: the authors' patches are pictures of different shapes. Ours are 6 x 6 cells with colours
from a seed, 4 cells from two borders: rows and columns 4 to 9 and 22 to 27 of a 32-pixel image,
where the usual random crop keeps them whole. Larger images get larger cells, and below 20 pixels
patches are nearer to the border, so that they do not overlap. The two patches of a test image are
our choice: those of the highest opacity. Poisoned and cover images may belong to any class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bdbench.attacks import Attack, Poisoned, dirty_label, register
from bdbench.attacks.patch import cell_pixels, enlarge, place
from bdbench.attacks.poison import check_cover_rate
from bdbench.models import ImageSet, require, within
from bdbench.models.rng import stream

PATCHES = 4
"""Patch 0 is in the upper left corner, 1 upper right, 2 lower left, 3 lower right."""
SIDE = 6
"""Side of a patch, in cells."""
MARGIN = 4
"""Cells between a patch and the two borders next to it."""


@register("adap_patch", title="Adap-Patch")
@dataclass(frozen=True)
class AdapPatch(Attack):
    """
    poisoning_rate: share of the training set, in (0, 1] (paper: 0.003)
    target: the label the trigger causes
    opacities: opacity of patches 0 to 3 in training images, in (0, 1] (paper: 0.5, 0.2, 0.5, 0.3)
    test_patches: the patches on a test image, from 0 to 3 (paper: two; which two is our choice)
    test_opacity: opacity of the patches on a test image, in (0, 1] (paper: 1)
    cover_rate: share of other training images that get a patch and keep their labels (paper: 0.006)
    patch_seed: seed of the colours, independent of the cell's seed
    """

    version: ClassVar[int] = 3

    poisoning_rate: float = 0.003
    opacities: tuple[float, ...] = (0.5, 0.2, 0.5, 0.3)
    test_patches: tuple[int, ...] = (0, 2)
    test_opacity: float = 1.0
    cover_rate: float = 0.006
    patch_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            len(self.opacities) == PATCHES
            and all(isinstance(part, float | int) and 0 < part <= 1 for part in self.opacities),
            f"opacities must be {PATCHES} values in (0, 1], got {self.opacities}",
        )
        require(
            all(type(number) is int and 0 <= number < PATCHES for number in self.test_patches)
            and len(set(self.test_patches)) == len(self.test_patches) > 0,
            f"test_patches must be different numbers from 0 to {PATCHES - 1}, "
            f"got {self.test_patches}",
        )
        within("(0, 1]", test_opacity=self.test_opacity)
        check_cover_rate(self.cover_rate, self.poisoning_rate)

    def cells(self) -> Tensor:
        """uint8 (4, 3, 6, 6): the colours of the cells of all patches."""
        rng = stream(self.patch_seed, "adap_patch")
        return torch.randint(0, 256, (PATCHES, 3, SIDE, SIDE), dtype=torch.uint8, generator=rng)

    def overlay(self, images: Tensor, number: int, opacity: float) -> Tensor:
        """Blend patch `number` into images: (1 - opacity) x + opacity patch."""
        height, width = images.shape[2:]
        patch = enlarge(self.cells()[number], height)
        # In a small image, patches move towards the corners, so that none covers another.
        side = patch.shape[1]
        room = min(height, width) // 2 - side
        require(room >= 0, f"four patches of {side} x {side} pixels do not fit {height} x {width}")
        margin = min(MARGIN, room // cell_pixels(height))
        rows, columns = place(height, width, patch, margin)
        if number < 2:
            rows = slice(height - rows.stop, height - rows.start)
        if number % 2 == 0:
            columns = slice(width - columns.stop, width - columns.start)
        stamped = images.clone()
        # Two separate operations, because a fused one would round differently on some devices.
        image_part = images[:, :, rows, columns].float() * (1 - opacity)
        patch_part = patch.to(images.device).float() * opacity
        stamped[:, :, rows, columns] = (image_part + patch_part).round().to(torch.uint8)
        return stamped

    def trigger(self, images: Tensor) -> Tensor:
        for number in self.test_patches:
            images = self.overlay(images, number, self.test_opacity)
        return images

    def training_trigger(self, images: Tensor, rng: torch.Generator) -> Tensor:
        # The images come in random order; the first quarter of them gets the first patch, etc.
        numbers = torch.arange(len(images)) * PATCHES // max(1, len(images))
        stamped = images.clone()
        for number, opacity in enumerate(self.opacities):
            rows = torch.nonzero(numbers == number).flatten().to(images.device)
            stamped[rows] = self.overlay(images[rows], number, opacity)
        return stamped

    def poison(self, clean: ImageSet, rng: torch.Generator) -> Poisoned:
        return dirty_label(self, clean, rng, self.cover_rate)

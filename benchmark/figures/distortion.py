"""How much a trigger changes images, and how much of it survives augmentation."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import starmap

import torch
from torch import Tensor

from bdbench.models.training.augment import Augmentation, AugmentationDraws, augment

CHUNK = 250
"""Number of images that are compared at once."""


@dataclass(frozen=True)
class Distortion:
    """How much a trigger changes images.

    psnr: dB, mean over the changed images; nan if there are none
    unchanged: number of images that the trigger does not change
    pixels: number of changed pixels per image, mean over all images
    largest: largest change of a colour channel, grey levels
    """

    psnr: float
    unchanged: int
    pixels: float
    largest: int


@dataclass(frozen=True)
class Survival:
    """How much of a trigger is left in augmented views of the images that it changes.

    views: number of views; the others are means over them, in [0, 1], nan without views
    seen: share of the views in which any changed pixel still differs
    whole: share of the views in which all changed pixels still differ
    energy: remaining share of the sum of squared differences
    """

    views: int
    seen: float
    whole: float
    energy: float


def distortion(before: Tensor, after: Tensor) -> Distortion:
    """Compare uint8 images (n, 3, height, width) without and with a trigger."""
    pairs = zip(before.split(CHUNK), after.split(CHUNK), strict=True)
    pixels, energy = (torch.cat(parts) for parts in zip(*starmap(_sizes, pairs), strict=True))
    errors = energy[energy > 0].double() / before[0].numel()
    return Distortion(
        psnr=float((10 * torch.log10(255**2 / errors)).mean()),
        unchanged=int((energy == 0).sum()),
        pixels=float(pixels.double().mean()),
        largest=int((torch.maximum(before, after) - torch.minimum(before, after)).max()),
    )


def survival(
    before: Tensor, after: Tensor, draws: AugmentationDraws, augmentation: Augmentation
) -> Survival:
    """Compare augmented views of uint8 images (n, 3, height, width), one view per draw.

    More than n draws use images several times.
    """
    parts = []
    for start in range(0, len(draws), CHUNK):
        part = draws[start : start + CHUNK]
        pair = [images[part.order % len(images)] for images in (before, after)]
        pixels, energy = _sizes(*pair)
        pixels_left, energy_left = _sizes(*(augment(x, part, augmentation) for x in pair))
        shares = (pixels_left > 0, pixels_left == pixels, energy_left / energy)
        parts.append(torch.stack(shares, dim=1)[energy > 0])
    views = torch.cat(parts).double()
    return Survival(len(views), *views.mean(0).tolist())


def _sizes(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """int64 (n,) each: number of pixels that differ, and sum of squared differences."""
    difference = after.int() - before.int()
    return difference.any(1).sum((1, 2)), difference.square().sum((1, 2, 3))

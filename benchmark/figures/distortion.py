"""How far a trigger changes images, and what is left of it after augmentation."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import starmap

import torch
from torch import Tensor

from bdbench.models.training.augment import Augmentation, AugmentationDraws, augment

CHUNK = 250
"""Images that are compared at once."""


@dataclass(frozen=True)
class Distortion:
    """How far a trigger changes images.

    psnr: dB, mean over the images that are changed; nan if none is
    unchanged: images that the trigger leaves as they were
    pixels: changed in an image, mean over all images
    largest: change of a colour of a pixel, grey levels
    """

    psnr: float
    unchanged: int
    pixels: float
    largest: int


@dataclass(frozen=True)
class Survival:
    """What is left of a trigger in augmented views of images that it changes.

    views: how many; the others are means over them, in [0, 1], and nan if there is none
    seen: share of the views in which any changed pixel still differs
    whole: share of the views in which all of them do
    energy: share of the sum of squared differences that is left
    """

    views: int
    seen: float
    whole: float
    energy: float


def distortion(before: Tensor, after: Tensor) -> Distortion:
    """Of uint8 images (n, 3, height, width)."""
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
    """In as many views of uint8 images (n, 3, height, width) as there are draws.

    More than n show images several times.
    """
    found = []
    for start in range(0, len(draws), CHUNK):
        part = draws[start : start + CHUNK]
        pair = [images[part.order % len(images)] for images in (before, after)]
        pixels, energy = _sizes(*pair)
        pixels_left, energy_left = _sizes(*(augment(x, part, augmentation) for x in pair))
        shares = (pixels_left > 0, pixels_left == pixels, energy_left / energy)
        found.append(torch.stack(shares, dim=1)[energy > 0])
    views = torch.cat(found).double()
    return Survival(len(views), *views.mean(0).tolist())


def _sizes(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """int64 (n,) each: pixels that differ, and the sum of squared differences."""
    difference = after.int() - before.int()
    return difference.any(1).sum((1, 2)), difference.square().sum((1, 2, 3))

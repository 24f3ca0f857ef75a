"""WaNet, Nguyen and Tran, 2021, arXiv:2102.10369.

The trigger is a smooth, nearly invisible warp: a fixed random field moves the sampling position of
every pixel by a fraction of a pixel.

Differs: the authors control the training and warp other images in each batch. Here, as in the CBD
paper's threat model, a fixed share of the training set is warped once; images with additional noise
in the warp, their "noise mode", are cover images and off by default. Positions are rounded to
1/2048 pixel, so that the sums are integer and the same on every device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from bdbench.attacks import Attack, Poisoned, dirty_label, register
from bdbench.attacks.poison import check_cover_rate
from bdbench.models import ImageSet, above, at_least, require, within
from bdbench.models.rng import stream

BITS = 11
"""Bits of a fraction of a pixel: twice as many and those of a grey level fit an int32."""
CHUNK = 1 << 22
"""Values that are warped at a time: few enough for a CPU's cache."""


@register("wanet", title="WaNet")
@dataclass(frozen=True)
class WaNet(Attack):
    """
    poisoning_rate: share of the training set, in (0, 1] (CBD paper, section 5.1: 0.1)
    target: the label the trigger causes (CBD paper: 0, and 1 on GTSRB)
    strength: s, the strength of the warp, above 0 (WaNet paper, section 4.1: 0.5)
    grid: k, points of the control grid per side, at most the image's side (paper: 4). At 224 pixels
        a warp with k=4 is too weak to be learned; VaB (ICCV 2023) uses k=224, s=1
    rescale: factor on the sampling positions, in (0, 1] (authors' code: 1)
    cover_rate: share of other images, warped with noise, that keep their labels (WaNet: 0.2)
    grid_seed: seed of the field, independent of the cell's seed
    """

    strength: float = 0.5
    grid: int = 4
    rescale: float = 1.0
    cover_rate: float = 0.0
    grid_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        above(0, strength=self.strength)
        at_least(2, grid=self.grid)
        within("(0, 1]", rescale=self.rescale)
        check_cover_rate(self.cover_rate, self.poisoning_rate)

    def field(self, height: int, width: int) -> Tensor:
        """float64 (height, width, 2): the sampling position of each pixel, column then row, in
        [-1, 1].

        Raises `InvalidInput` if the grid has more points than the image has pixels on a side.
        """
        require(
            self.grid <= min(height, width),
            f"grid must be at most the image's side, {min(height, width)}, got {self.grid}",
        )
        rng = stream(self.grid_seed, "wanet")
        points = 2 * torch.rand(1, 2, self.grid, self.grid, dtype=torch.float64, generator=rng) - 1
        points = points / points.abs().mean()
        noise = interpolate(points, (height, width), mode="bicubic", align_corners=True)
        moved = identity(height, width) + self.strength * noise[0].permute(1, 2, 0) / height
        return (moved * self.rescale).clamp(-1, 1)

    def trigger(self, images: Tensor) -> Tensor:
        return warp(images, self.field(*images.shape[2:])[None])

    def disguise(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """Images warped by the field plus noise of up to half a pixel, drawn for each image."""
        height, width = images.shape[2:]
        field = self.field(height, width)

        def warped(part: Tensor) -> Tensor:
            noise = torch.rand(len(part), height, width, 2, dtype=torch.float64, generator=rng)
            return warp(part, (field + (2 * noise - 1) / height).clamp(-1, 1))

        # The fields of all images at once would take more memory than a large data set.
        return torch.cat([warped(part) for part in images.split(max(1, CHUNK // field.numel()))])

    def poison(self, clean: ImageSet, rng: torch.Generator) -> Poisoned:
        return dirty_label(self, clean, rng, self.cover_rate)


def identity(height: int, width: int) -> Tensor:
    """float64 (height, width, 2): the field that samples every pixel at its own position."""
    rows = torch.linspace(-1, 1, height, dtype=torch.float64)
    columns = torch.linspace(-1, 1, width, dtype=torch.float64)
    down, across = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack((across, down), dim=-1)


def warp(images: Tensor, field: Tensor) -> Tensor:
    """uint8 (n, 3, height, width), sampled bilinearly at float64 (1 or n, height, width, 2).

    -1 and 1 are the centres of the outermost pixels (torch's `align_corners`).
    """
    count, channels, height, width = images.shape
    one = 1 << BITS
    sides = torch.tensor([width - 1, height - 1])
    position = ((field + 1) / 2 * sides * one).round().long().flatten(1, 2)
    # At the last pixel, interpolate from the one before it, with all weight on the last.
    low = torch.minimum(position >> BITS, (sides - 1).clamp(min=0))
    right, down = (position - (low << BITS)).unbind(-1)
    column, row = low.unbind(-1)
    step_right, step_down = min(1, width - 1), width * min(1, height - 1)
    corner = row * width + column
    sources = (corner, corner + step_right, corner + step_down, corner + step_right + step_down)
    left, up = one - right, one - down
    weights = (up * left, up * right, down * left, down * right)
    result = torch.empty_like(images, memory_format=torch.contiguous_format)
    step = max(1, CHUNK // (channels * height * width))
    for start in range(0, count, step):
        rows = slice(start, start + step) if len(field) > 1 else slice(0, 1)
        part = images[start : start + step].flatten(2)
        total = torch.full_like(part, 1 << (2 * BITS - 1), dtype=torch.int32)
        for source, weight in zip(sources, weights, strict=True):
            index = source[rows, None].to(images.device).expand(len(part), channels, -1)
            factor = weight[rows, None].to(images.device, torch.int32)
            total += part.gather(2, index) * factor
        result[start : start + step] = (
            (total >> (2 * BITS)).to(torch.uint8).view_as(result[start : start + step])
        )
    return result

"""Random crop, horizontal flip and cutout of a whole batch, drawn independently for each image.

The draws of an epoch are made beforehand on the CPU, so that every device and every data path gets
the same images. Given the same draws, the result equals torchvision's per-image
RandomCrop(padding), RandomHorizontalFlip and a zeroed square.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from bdbench.models.plugins.errors import require


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of training images.

    padding: pixels of zeros added on each side before a crop of the original size
    flip: mirror left-right with probability 1/2
    cutout: side of a zeroed square in pixels, 0 for none. Its centre is anywhere in the image, so
        that it may extend over the border (DeVries and Taylor, 2017, arXiv:1708.04552).
    """

    padding: int = 4
    flip: bool = True
    cutout: int = 2


@dataclass(frozen=True)
class AugmentationDraws:
    """The random draws of one epoch, each int64 (n,) in the order of use.

    order: positions in the image set
    top, left: corner of the crop in the padded image, in [0, 2 * padding]
    mirrored: 0 or 1
    row, column: centre of the cutout square
    """

    order: Tensor
    top: Tensor
    left: Tensor
    mirrored: Tensor
    row: Tensor
    column: Tensor

    def to(self, device: torch.device) -> AugmentationDraws:
        return AugmentationDraws(*(values.to(device) for values in vars(self).values()))

    def __getitem__(self, rows: Tensor | slice) -> AugmentationDraws:
        """The draws at these positions."""
        return AugmentationDraws(*(values[rows] for values in vars(self).values()))

    def __len__(self) -> int:
        return len(self.order)


def draw_augmentation(
    count: int, size: tuple[int, int], augmentation: Augmentation, generator: torch.Generator
) -> AugmentationDraws:
    """Draws for `count` images of `size` (height, width); every image occurs once."""

    def integers(high: int) -> Tensor:
        return torch.randint(high, (count,), generator=generator)

    height, width = size
    return AugmentationDraws(
        order=torch.randperm(count, generator=generator),
        top=integers(2 * augmentation.padding + 1),
        left=integers(2 * augmentation.padding + 1),
        mirrored=integers(2),
        row=integers(height),
        column=integers(width),
    )


def augment(images: Tensor, draws: AugmentationDraws, augmentation: Augmentation) -> Tensor:
    """uint8 (n, 3, height, width) -> uint8 of the same shape, augmented by n draws."""
    count, channels, height, width = images.shape
    padding = augmentation.padding
    tables = _tables(height, width, augmentation, images.device)
    corner = draws.left.add(draws.top, alpha=width + 2 * padding)
    source = corner[:, None] + tables.pixels[draws.mirrored if augmentation.flip else 0]
    padded = pad(images, (padding,) * 4).view(count, channels, -1)
    result = padded.gather(2, source[:, None].expand(-1, channels, -1)).view_as(images)
    if augmentation.cutout:
        down, across = tables.rows[draws.row], tables.columns[draws.column]
        result.masked_fill_((down[:, :, None] & across[:, None, :])[:, None], 0)
    return result


@dataclass(frozen=True)
class _Tables:
    """Index tables that depend on the image size only, so that a step need not compute them.

    pixels: int64 (2, height * width), positions in the padded image of the pixels of a crop at its
        upper left corner, unmirrored and mirrored
    rows: bool (height, height), for each centre row the rows that a cutout zeroes
    columns: bool (width, width), the same for columns
    """

    pixels: Tensor
    rows: Tensor
    columns: Tensor


@functools.cache
def _tables(height: int, width: int, augmentation: Augmentation, device: torch.device) -> _Tables:
    """Cached forever: a captured step reads the tables at every replay."""
    down = torch.arange(height)[:, None] * (width + 2 * augmentation.padding)
    across = torch.arange(width)
    pixels = torch.stack([(down + across).flatten(), (down + across.flip(0)).flatten()])
    hidden = (_hidden(length, augmentation.cutout) for length in (height, width))
    # Computed on the CPU. The copy synchronises, so streams of other threads may read them at once.
    return _Tables(*(table.to(device) for table in (pixels, *hidden)))


def _hidden(length: int, side: int) -> Tensor:
    """bool (length, length): for each centre, True at the `side` positions that start at
    centre - side // 2."""
    position = torch.arange(length)
    offset = position - (position[:, None] - side // 2)
    return (offset >= 0) & (offset < side)


def to_float(images: Tensor) -> Tensor:
    """uint8 in [0, 255] -> float32 in [0, 1], in the channels-last layout of the networks. Raises
    `InvalidInput` for another type."""
    # Floats would not be copied, and divided where they are.
    require(images.dtype == torch.uint8, f"images must be uint8 in [0, 255], got {images.dtype}")
    return images.to(torch.float32, memory_format=torch.channels_last).div_(255)

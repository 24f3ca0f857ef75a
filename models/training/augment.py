"""Random crop, horizontal flip and cutout, for a whole batch at once and each image on its own.

All choices of an epoch are drawn beforehand on the CPU, so every device and every code
path sees the same pictures. The result equals torchvision's per-image RandomCrop(padding),
RandomHorizontalFlip and a zeroed square, given the same draws.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a training image.

    padding: pixels of zeros added on each side before a crop of the original size
    flip: mirror left-right with probability 1/2
    cutout: side of a zeroed square in pixels, 0 for none; centred anywhere in the image, so it may
        hang over the border (DeVries and Taylor, 2017, arXiv:1708.04552)
    """

    padding: int = 4
    flip: bool = True
    cutout: int = 2


@dataclass(frozen=True)
class AugmentationDraws:
    """The random choices of one epoch, each int64 (n,) in the order of use.

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
        """The choices at these places."""
        return AugmentationDraws(*(values[rows] for values in vars(self).values()))

    def __len__(self) -> int:
        return len(self.order)


def draw_augmentation(
    count: int, size: tuple[int, int], augmentation: Augmentation, generator: torch.Generator
) -> AugmentationDraws:
    """Choices for `count` images of `size` (height, width); every image occurs once."""

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
    """uint8 (n, 3, height, width) -> uint8 of the same shape, by n draws."""
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
    """What only depends on the size of the images, so that a step need not compute it.

    pixels: int64 (2, height * width), positions in the padded image of a crop from its upper left
        corner, as it is and mirrored
    rows: bool (height, height), those that a cutout with its centre in a row hides
    columns: bool (width, width), likewise
    """

    pixels: Tensor
    rows: Tensor
    columns: Tensor


@functools.cache
def _tables(height: int, width: int, augmentation: Augmentation, device: torch.device) -> _Tables:
    """They stay: a recorded step reads them at every replay."""
    down = torch.arange(height)[:, None] * (width + 2 * augmentation.padding)
    across = torch.arange(width)
    pixels = torch.stack([(down + across).flatten(), (down + across.flip(0)).flatten()])
    hidden = (_hidden(length, augmentation.cutout) for length in (height, width))
    # Made on the CPU and copied, which waits: streams of other threads may read them at once.
    return _Tables(*(table.to(device) for table in (pixels, *hidden)))


def _hidden(length: int, side: int) -> Tensor:
    """bool (length, length): for each centre the `side` positions from centre - side // 2 on."""
    place = torch.arange(length)
    offset = place - (place[:, None] - side // 2)
    return (offset >= 0) & (offset < side)


def to_float(images: Tensor) -> Tensor:
    """uint8 in [0, 255] -> float32 in [0, 1], laid out channels last as the networks like it."""
    return images.to(torch.float32, memory_format=torch.channels_last).div_(255)

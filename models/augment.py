"""Random crop, horizontal flip and cutout, for a whole batch at once and each image on its own.

All choices of an epoch are drawn beforehand on the CPU (the tape), so every device and every code
path sees the same pictures. The result equals torchvision's per-image RandomCrop(padding),
RandomHorizontalFlip and a zeroed square, given the same draws.
"""

from __future__ import annotations

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
class Tape:
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

    def to(self, device: torch.device) -> Tape:
        return Tape(*(values.to(device) for values in vars(self).values()))

    def __getitem__(self, rows: Tensor | slice) -> Tape:
        """The choices at these places."""
        return Tape(*(values[rows] for values in vars(self).values()))

    def __len__(self) -> int:
        return len(self.order)


def draw_tape(
    count: int, size: tuple[int, int], augmentation: Augmentation, generator: torch.Generator
) -> Tape:
    """Choices for `count` images of `size` (height, width); every image occurs once."""

    def integers(high: int) -> Tensor:
        return torch.randint(high, (count,), generator=generator)

    height, width = size
    return Tape(
        order=torch.randperm(count, generator=generator),
        top=integers(2 * augmentation.padding + 1),
        left=integers(2 * augmentation.padding + 1),
        mirrored=integers(2),
        row=integers(height),
        column=integers(width),
    )


def augment(images: Tensor, tape: Tape, augmentation: Augmentation) -> Tensor:
    """uint8 (n, 3, height, width) -> uint8 of the same shape, by the choices of a tape of n."""
    count, channels, height, width = images.shape
    padding = augmentation.padding
    rows = tape.top[:, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(count, width)
    if augmentation.flip:
        columns = torch.where(tape.mirrored[:, None] == 1, width - 1 - columns, columns)
    columns = tape.left[:, None] + columns
    source = rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]
    padded = pad(images, (padding,) * 4).view(count, channels, -1)
    index = source.view(count, 1, -1).expand(-1, channels, -1)
    result = padded.gather(2, index).view_as(images)
    if augmentation.cutout:
        down = _inside(tape.row, augmentation.cutout, height)
        across = _inside(tape.column, augmentation.cutout, width)
        result.masked_fill_((down[:, :, None] & across[:, None, :])[:, None], 0)
    return result


def _inside(centre: Tensor, side: int, length: int) -> Tensor:
    """bool (n, length): the `side` positions from centre - side // 2 on."""
    offset = torch.arange(length, device=centre.device) - (centre[:, None] - side // 2)
    return (offset >= 0) & (offset < side)


def to_float(images: Tensor) -> Tensor:
    """uint8 in [0, 255] -> float32 in [0, 1], laid out channels last as the networks like it."""
    return images.contiguous(memory_format=torch.channels_last).float().div_(255)

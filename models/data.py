"""Labelled images as two tensors on one device. There is no data loader: a batch is an index."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bdbench.models.plugins.errors import require


def portion(share: float, count: int) -> int:
    """`share` of `count`, rounded down."""
    # Not int(share * count): 0.29 * 100 is a little less than 29.
    return int(round(share * count, 6))


@dataclass(frozen=True)
class ImageSet:
    """Images and their labels, never modified in place.

    images: uint8 (n, 3, height, width)
    labels: int64 (n,), on the device of the images, in [0, num_classes)
    num_classes: number of classes of the task; some may have no image here

    Raises `InvalidInput` for any other dtype, shape, device or label.
    """

    images: Tensor
    labels: Tensor
    num_classes: int

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        require(
            images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] == 3,
            f"images must be uint8 (n, 3, height, width), got {images.dtype} {tuple(images.shape)}",
        )
        require(
            labels.dtype == torch.int64 and labels.shape == images.shape[:1],
            f"labels must be int64 ({len(images)},), got {labels.dtype} {tuple(labels.shape)}",
        )
        require(images.device == labels.device, "images and labels must be on one device")
        if len(labels):
            low, high = int(labels.min()), int(labels.max())
            require(
                low >= 0 and high < self.num_classes,
                f"labels must be in [0, {self.num_classes}), got {low}..{high}",
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor) -> ImageSet:
        """The images at integer positions, or where a bool mask (n,) is True."""
        return ImageSet(self.images[rows], self.labels[rows], self.num_classes)

    def to(self, device: torch.device) -> ImageSet:
        """The same set on another device."""
        return ImageSet(self.images.to(device), self.labels.to(device), self.num_classes)

    @property
    def device(self) -> torch.device:
        return self.images.device

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.images.shape[2], self.images.shape[3]

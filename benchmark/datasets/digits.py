"""Handwritten digits that ship with scikit-learn: real images without a download.

Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository,
1998, doi:10.24432/C50P49, CC BY 4.0: the 1,797 images of its test part, 8 x 8 in 17 grey levels,
by 13 writers.

Here they are enlarged to 16 x 16 and get three equal channels, so that every attack and network
accepts them. The split into training and test images is fixed, stratified by class, not by writer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from bdbench.datasets import register
from bdbench.datasets.base import (
    Dataset,
    Source,
    check_count,
    fingerprint,
    stratified,
    stratified_rows,
)
from bdbench.models.data import ImageSet
from bdbench.storage.cache import Cache

CLASSES = tuple("0123456789")
WHITE = 16
"""The largest grey level of the originals."""


@register("digits", title="Digits")
@dataclass(frozen=True)
class Digits(Source):
    """1,200 training and 597 test images of 16 x 16 pixels. Images are not flipped, because a
    mirrored digit is not a digit.

    train_images: number of training images to use, from 10 to 1,200, None for all of them
    """

    name: ClassVar[str] = "digits"
    num_classes: ClassVar[int] = 10
    train_size: ClassVar[int] = 1_200
    flip: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.name, self.count, self.train_size)

    @property
    def image_size(self) -> int:
        return 16

    @property
    def learning_rate(self) -> float:
        """As on CIFAR-10."""
        return 0.1

    def load(self, roots: Sequence[Path], cache: Cache) -> Dataset:
        # The import takes a second, so it is made only if these images are used.
        from sklearn.datasets import load_digits

        found = load_digits()
        images = torch.from_numpy(enlarge(found.images.astype(np.int64)))
        every = ImageSet(images, torch.from_numpy(found.target.astype(np.int64)), len(CLASSES))
        rows = stratified_rows(every, self.train_size, "digits")
        train, test = every[rows], every[~rows]
        if self.count != len(train):
            train = stratified(train, self.count, self.name)
        return Dataset(train, test, CLASSES, fingerprint(train, test))

    def locate(self, roots: Sequence[Path]) -> str:
        return "ships with scikit-learn"


def enlarge(images: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Grey levels from 0 to 16 (n, height, width) -> uint8 (n, 3, 2 height, 2 width).

    Bilinear interpolation with pixels as squares: along each axis, a new pixel is 3/4 of the
    nearest and 1/4 of the second nearest. Integers give the same pixels on every machine.
    """
    sixteenths = _double(_double(images, 1), 2)
    whole = 16 * WHITE
    levels = (2 * 255 * sixteenths + whole) // (2 * whole)
    return np.repeat(levels[:, None].astype(np.uint8), 3, axis=1)


def _double(images: NDArray[Any], axis: int) -> NDArray[Any]:
    """The images with twice as many pixels along an axis, and values times four."""
    length = images.shape[axis]
    before = np.take(images, np.maximum(np.arange(length) - 1, 0), axis)
    after = np.take(images, np.minimum(np.arange(length) + 1, length - 1), axis)
    pair = np.stack([3 * images + before, 3 * images + after], axis + 1)
    shape = list(images.shape)
    shape[axis] *= 2
    return pair.reshape(shape)

"""CIFAR-10, Krizhevsky 2009: 60,000 photographs of ten kinds of things."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from bdbench.datasets import parquet, register
from bdbench.datasets.files import Decoded, FileSource, Found
from bdbench.models.data import ImageSet
from bdbench.models.plugins.errors import check

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
FOLDER = "cifar-10-batches-py"


@register("cifar10", title="CIFAR-10")
@dataclass(frozen=True)
class CIFAR10(FileSource):
    """CIFAR-10, 32x32 pixels, 50,000 training and 10,000 test images.

    train_images: number of training images to use, None for all; a fixed stratified subset
    """

    name: ClassVar[str] = "cifar10"
    num_classes: ClassVar[int] = 10
    image_size: ClassVar[int] = 32
    train_size: ClassVar[int] = 50_000
    test_size: ClassVar[int] = 10_000
    flip: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 0.1
    layouts: ClassVar[tuple[str, ...]] = (
        f"cifar10/{parquet.LAYOUT}",
        f"[cifar10/]{FOLDER}",
    )

    def find(self, root: Path) -> Iterator[Found]:
        yield from parquet.find(root, self.name, CLASSES, self.image_size, resize=None)
        for parent in (root, root / self.name):
            if (parent / FOLDER).is_dir():
                yield archive(parent)


def archive(parent: Path) -> Found:
    """The official archive, unpacked in `parent`."""
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity

    official = datasets.CIFAR10
    meta = (official.meta["filename"], official.meta["md5"])
    checksums = {
        parent / FOLDER / name: md5
        for name, md5 in (*official.train_list, *official.test_list, meta)
    }

    def decode() -> Decoded:
        # The batches are pickles, which can run code: torchvision too checks before it opens them.
        for path, md5 in checksums.items():
            check(check_integrity(path, md5), f"{path}: is not the official file, the md5 differs")
        with warnings.catch_warnings():
            # Newer NumPy deprecates how these old pickles spell a dtype.
            warnings.simplefilter("ignore")
            splits = [official(parent, train=train) for train in (True, False)]
        train, test = (
            ImageSet(
                torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous(),
                torch.tensor(split.targets),
                len(CLASSES),
            )
            for split in splits
        )
        return Decoded(train, test, CLASSES)

    there = tuple(path for path in checksums if path.is_file())
    return Found("official archive", parent / FOLDER, there, decode)

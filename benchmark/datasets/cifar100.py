"""CIFAR-100, Krizhevsky 2009: 60,000 photographs of a hundred kinds of things, the fine labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bdbench.datasets import cifar, parquet, register
from bdbench.datasets.archives import Archive
from bdbench.datasets.files import FileSource, Found

CLASSES = tuple(f"{label:02d}" for label in range(100))
"""Names for Parquet files that have none."""
FOLDER = "cifar-100-python"


@register("cifar100")
@dataclass(frozen=True)
class CIFAR100(FileSource):
    """CIFAR-100, 32x32 pixels, 50,000 training and 10,000 test images of 100 classes.

    train_images: number of training images to use, None for all; a fixed stratified subset
    """

    name: ClassVar[str] = "cifar100"
    num_classes: ClassVar[int] = 100
    image_size: ClassVar[int] = 32
    train_size: ClassVar[int] = 50_000
    test_size: ClassVar[int] = 10_000
    flip: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 0.1
    layouts: ClassVar[tuple[str, ...]] = (
        f"cifar100/{parquet.LAYOUT}",
        f"[cifar100/]{FOLDER}",
    )
    archives: ClassVar[tuple[Archive, ...]] = (
        # The sha256 is that of Keras, for a file of torchvision's md5 eb9058c3...
        Archive(
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            "sha256:85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        ),
    )

    def find(self, root: Path) -> Iterator[Found]:
        yield from parquet.find(root, self.name, CLASSES, self.image_size, resize=None)
        for parent in (root, root / self.name):
            if (parent / FOLDER).is_dir():
                from torchvision import datasets

                yield cifar.unpacked(parent, datasets.CIFAR100)

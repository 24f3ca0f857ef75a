"""CIFAR-10, Krizhevsky 2009: 60,000 photographs of ten kinds of things."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bdbench.datasets import parquet, register
from bdbench.datasets.archives import Archive
from bdbench.datasets.cifar import CIFAR

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
class CIFAR10(CIFAR):
    """CIFAR-10, 32x32 pixels, 50,000 training and 10,000 test images.

    train_images: number of training images to use, None for all of them; a stratified
        subset, the same for the same files in the same order
    """

    name: ClassVar[str] = "cifar10"
    num_classes: ClassVar[int] = 10
    train_size: ClassVar[int] = 50_000
    test_size: ClassVar[int] = 10_000
    classes: ClassVar[tuple[str, ...]] = CLASSES
    folder: ClassVar[str] = FOLDER
    official: ClassVar[str] = "CIFAR10"
    layouts: ClassVar[tuple[str, ...]] = (
        parquet.layout("cifar10"),
        f"[cifar10/]{FOLDER}",
    )
    archives: ClassVar[tuple[Archive, ...]] = (
        # The sha256 that Keras has for the file with torchvision's md5 c58f3010...
        Archive(
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            "sha256:6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        ),
    )

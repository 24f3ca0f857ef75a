"""CIFAR-100, Krizhevsky 2009: 60,000 photographs of a hundred kinds of things, the fine labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bdbench.datasets import parquet, register
from bdbench.datasets.archives import Archive
from bdbench.datasets.cifar import CIFAR

CLASSES = tuple(f"{label:02d}" for label in range(100))
FOLDER = "cifar-100-python"


@register("cifar100", title="CIFAR-100")
@dataclass(frozen=True)
class CIFAR100(CIFAR):
    """CIFAR-100, 32x32 pixels, 50,000 training and 10,000 test images of 100 classes.

    train_images: number of training images to use, None for all of them; a stratified
        subset, the same for the same files in the same order
    """

    name: ClassVar[str] = "cifar100"
    num_classes: ClassVar[int] = 100
    train_size: ClassVar[int] = 50_000
    test_size: ClassVar[int] = 10_000
    classes: ClassVar[tuple[str, ...]] = CLASSES
    folder: ClassVar[str] = FOLDER
    official: ClassVar[str] = "CIFAR100"
    layouts: ClassVar[tuple[str, ...]] = (
        parquet.layout("cifar100"),
        f"[cifar100/]{FOLDER}",
    )
    archives: ClassVar[tuple[Archive, ...]] = (
        # The sha256 that Keras has for the file with torchvision's md5 eb9058c3...
        Archive(
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            "sha256:85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        ),
    )

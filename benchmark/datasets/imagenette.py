"""Imagenette, Howard 2019: ten easy classes of ImageNet, github.com/fastai/imagenette.

This is version 2 with 320 pixels, `imagenette2-320`. Images are resized and cropped as those of
`imagenet_subset`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from bdbench.datasets import class_folders, parquet, register
from bdbench.datasets.archives import Archive
from bdbench.datasets.files import Decoded, FileSource, Located
from bdbench.datasets.imagenet_subset import SIZE, crop
from bdbench.models.plugins.errors import InvalidInput, require

CLASSES = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}
"""Class folders, which are WordNet ids, and class names."""
FOLDER = "imagenette2-320"


@register("imagenette")
@dataclass(frozen=True)
class Imagenette(FileSource):
    """Ten classes of ImageNet, 9,469 training and 3,925 test images.

    train_images: number of training images to use, None for all of them; a stratified
        subset, the same for the same files in the same order
    size: height and width, pixels, from 16 to 320; 224 as on ImageNet
    """

    name: ClassVar[str] = "imagenette"
    num_classes: ClassVar[int] = len(CLASSES)
    train_size: ClassVar[int] = 9_469
    test_size: ClassVar[int] = 3_925
    flip: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 0.1
    layouts: ClassVar[tuple[str, ...]] = (
        parquet.layout("imagenette"),
        f"[imagenette/]{FOLDER}/{class_folders.LAYOUT}",
        f"imagenette/{class_folders.LAYOUT}",
    )
    archives: ClassVar[tuple[Archive, ...]] = (
        # The sha256 that fastdownload has for the file with torchvision's md5 3df6f0d0...
        Archive(
            f"https://s3.amazonaws.com/fast-ai-imageclas/{FOLDER}.tgz",
            "sha256:569b4497c98db6dd29f335d1f109cf315fe127053cedf69010d047f0188e158c",
        ),
    )

    size: int = SIZE

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            16 <= self.size <= 320, f"size of imagenette must be from 16 to 320, got {self.size:,}"
        )

    @property
    def image_size(self) -> int:
        return self.size

    def find(self, root: Path) -> Iterator[Located]:
        own = root / self.name
        yield from parquet.find(root, self.name, tuple(CLASSES.values()), self.size, crop)
        for base in (own / FOLDER, root / FOLDER, own):
            if (base / "train").is_dir():
                yield _named(class_folders.locate(base, self.size, crop, _check_names))


def _named(found: Located) -> Located:
    """With the names of the classes in place of their folders, which have the same order."""

    def decode() -> Decoded:
        return replace(found.decode(), class_names=tuple(CLASSES.values()))

    return replace(found, decode=decode)


def _check_names(folder: Path, names: Sequence[str]) -> None:
    differing = {*names} ^ {*CLASSES}
    if differing:
        other = min(differing)
        problem = "lacks the class" if other in CLASSES else "has a class that imagenette lacks:"
        raise InvalidInput(f"{folder} {problem} {other}")

"""ImageNet subset, Deng et al. 2009: photographs of twelve classes.

The paper names neither the classes nor their number. ABL uses twelve, which fits the training times
that the paper reports. Any twelve will do; their labels follow the order of the folder names, which
are WordNet ids.

Images become 224x224 pixels, as is usual for evaluation on ImageNet: the shorter side is resized to
256 pixels with a bilinear filter, and the centre is cropped. Images of 224x224 pixels stay as they
are. There are no random resized crops, because all data sets share the augmentation of the suite.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

from PIL import Image

from bdbench.datasets import class_folders, parquet, register
from bdbench.datasets.files import Decoded, FileSource, Located
from bdbench.datasets.images import centre
from bdbench.models.plugins.errors import InvalidInput, require

CLASSES = tuple(f"{label:02d}" for label in range(12))
"""Class names, for Parquet files without any."""
SIZE = 224
RESIZED = 256


@register("imagenet_subset", title="ImageNet subset")
@dataclass(frozen=True)
class ImageNetSubset(FileSource):
    """Twelve classes of ImageNet, 224x224 pixels, 15,600 training and 600 test images.

    train_images: number of training images to use, None for all of them; a stratified
        subset, the same for the same files in the same order
    """

    name: ClassVar[str] = "imagenet_subset"
    num_classes: ClassVar[int] = len(CLASSES)
    image_size: ClassVar[int] = SIZE
    train_size: ClassVar[int] = 15_600
    test_size: ClassVar[int] = 600
    flip: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 0.1
    layouts: ClassVar[tuple[str, ...]] = (
        parquet.layout("imagenet_subset"),
        f"imagenet_subset/{class_folders.LAYOUT} with 12 classes, or test for val",
    )

    def find(self, root: Path) -> Iterator[Located]:
        for found in parquet.find(root, self.name, CLASSES, self.image_size, crop):
            yield replace(found, decode=partial(_with_all_classes, found))
        if (root / self.name / "train").is_dir():
            yield class_folders.locate(root / self.name, self.image_size, crop, _check_names)


def crop(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to 256 pixels and crop the central 224x224; for another size, in
    proportion."""
    return centre(image, size, SIZE / RESIZED)


def _check_names(folder: Path, names: Sequence[str]) -> None:
    require(
        len(names) == len(CLASSES),
        f"{folder} has {len(names)} class folders; {len(CLASSES)} are needed",
    )


def _with_all_classes(found: Located) -> Decoded:
    """Decode the files. Raises `InvalidInput` if a class has no image."""
    decoded = found.decode()
    for split, data in (("train", decoded.train), ("test", decoded.test)):
        counts = data.labels.bincount(minlength=data.num_classes).tolist()
        if 0 in counts:
            where = f"{found.folder}: {split}-*.parquet"
            raise InvalidInput(f"{where} has no image of label {counts.index(0)}")
    return decoded

"""What CIFAR-10 and CIFAR-100 share: image size, layouts and the format of the official archives.

The archives hold pickles, which are opened only if their md5 is the official one.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch

from bdbench.datasets import parquet
from bdbench.datasets.files import Decoded, FileSource, Located
from bdbench.models.data import ImageSet
from bdbench.models.plugins.errors import require

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10


@dataclass(frozen=True)
class CIFAR(FileSource):
    """CIFAR-10 or CIFAR-100: photographs of 32x32 pixels."""

    image_size: ClassVar[int] = 32
    flip: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 0.1
    classes: ClassVar[tuple[str, ...]]
    """Class names, for Parquet files without any."""
    folder: ClassVar[str]
    """The folder in the official archive."""
    official: ClassVar[str]
    """The name of the torchvision class that describes the archive."""

    def find(self, root: Path) -> Iterator[Located]:
        yield from parquet.find(root, self.name, self.classes, self.image_size, resize=None)
        for parent in (root, root / self.name):
            if (parent / self.folder).is_dir():
                from torchvision import datasets

                yield unpacked(parent, getattr(datasets, self.official))


def unpacked(parent: Path, official: type[CIFAR10]) -> Located:
    """The official archive, unpacked in `parent`, as a class of torchvision describes it."""
    from torchvision.datasets.utils import check_integrity

    folder = parent / official.base_folder
    meta = (official.meta["filename"], official.meta["md5"])
    checksums = {
        folder / name: md5 for name, md5 in (*official.train_list, *official.test_list, meta)
    }

    def decode() -> Decoded:
        # The batches are pickles, which can run code. torchvision also checks before it opens one.
        for path, md5 in checksums.items():
            why = "its md5 differs" if path.is_file() else "it is missing"
            require(
                check_integrity(path, md5),
                f"{path} is not the official file: {why}; remove {folder} and unpack the archive "
                f"again",
            )
        with warnings.catch_warnings():
            # Newer NumPy deprecates how these old pickles spell a dtype.
            warnings.simplefilter("ignore")
            splits = [official(parent, train=train) for train in (True, False)]
        names = tuple(splits[0].classes)
        train, test = (
            ImageSet(
                torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous(),
                torch.tensor(split.targets),
                len(names),
            )
            for split in splits
        )
        return Decoded(train, test, names)

    there = tuple(path for path in checksums if path.is_file())
    lost = len(checksums) - len(there)
    note = f"{lost} of the {len(checksums)} files are missing" if lost else ""
    return Located("official archive", folder, there, decode, note)

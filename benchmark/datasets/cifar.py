"""The official archives of CIFAR-10 and CIFAR-100, unpacked.

They hold pickles, which are read only if their md5 is the official one.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bdbench.datasets.files import Decoded, Found
from bdbench.models.data import ImageSet
from bdbench.models.plugins.errors import check

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10


def unpacked(parent: Path, official: type[CIFAR10]) -> Found:
    """The official archive, unpacked in `parent`, as a class of torchvision describes it."""
    from torchvision.datasets.utils import check_integrity

    folder = parent / official.base_folder
    meta = (official.meta["filename"], official.meta["md5"])
    checksums = {
        folder / name: md5 for name, md5 in (*official.train_list, *official.test_list, meta)
    }

    def decode() -> Decoded:
        # The batches are pickles, which can run code: torchvision too checks before it opens them.
        for path, md5 in checksums.items():
            check(check_integrity(path, md5), f"{path}: is not the official file, the md5 differs")
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
    return Found("official archive", folder, there, decode)

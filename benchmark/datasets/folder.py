"""A user's own images: one folder for each class, any number of classes, any image size.

They are in `<path>/train/CLASS/*` and `<path>/val/CLASS/*`, or `test`; or in `<path>/CLASS/*`, with
a share of test images. The largest central square of each image is resized.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch

from bdbench.datasets import class_folders, register
from bdbench.datasets.class_folders import Labelled, Listing
from bdbench.datasets.files import FileSource, Located
from bdbench.datasets.images import centre
from bdbench.models.plugins.errors import InvalidInput, require, visible
from bdbench.models.plugins.spec import path_field
from bdbench.models.rng import stream
from bdbench.storage.folders import expanded

EXAMPLE = "folder(path='DIR', size=64)"

SETTLED = 2_000_000_000
"""Nanoseconds after which the times of two changes differ on every file system."""
REMEMBERED = 8
"""Largest number of results that are remembered."""

T = TypeVar("T")
Status = tuple[int, ...]
"""Inode, size, and times of change in nanoseconds: they change with a file or folder."""


@register("folder")
@dataclass(frozen=True)
class Folder(FileSource):
    """Images of your own: `path/{train,val}/CLASS/*.{JPEG,png,...}` or `path/CLASS/*`.

    train_images: number of training images to use, None for all of them; a stratified
        subset, the same for the same files in the same order
    path: the folder, relative to the current one unless it begins with / or ~
    size: height and width that images are resized to, pixels, from 8 to 1,024
    test_share: share of each class that is used for testing, in (0, 1), if there is no folder val
        or test; a fixed random choice
    flip: whether a horizontally flipped image keeps its label
    """

    name: ClassVar[str] = "folder"
    learning_rate: ClassVar[float] = 0.1
    layouts: ClassVar[tuple[str, ...]] = (
        f"path/{class_folders.LAYOUT}, or test for val",
        "path/CLASS/*.{JPEG,png,...} with test_share",
    )

    path: str = path_field()
    size: int = 32
    test_share: float | None = None
    flip: bool = True

    def __post_init__(self) -> None:
        require(
            8 <= self.size <= 1024, f"size of folder must be from 8 to 1,024, got {self.size:,}"
        )
        require(
            self.test_share is None or 0 < self.test_share < 1,
            f"test_share of folder must be above 0 and below 1, got {self.test_share}",
        )
        require(
            "\0" not in self.path and bool(os.path.basename(os.path.abspath(self.path))),
            f"path of folder must name a folder, got {self.path!r}",
        )
        # The number of classes is not known before the folder is read.
        at_least = 1 if self.train_images is None else self.train_images
        require(at_least >= 1, f"train_images of folder must be at least 1, got {at_least:,}")

    @property
    def is_named(self) -> bool:
        return bool(self.path)

    @property
    def advice(self) -> str:
        return f"name one, such as {EXAMPLE}"

    @property
    def num_classes(self) -> int:
        return len(self._listing.names)

    @property
    def train_size(self) -> int:
        return len(self._listing.train)

    @property
    def test_size(self) -> int:
        return len(self._listing.test)

    @property
    def count(self) -> int:
        listing = self._listing
        count = len(listing.train) if self.train_images is None else self.train_images
        classes = len(listing.names)
        require(
            count >= classes,
            f"train_images of folder must be at least {classes}, one image for each class, got"
            f" {count:,}",
        )
        return count

    @property
    def image_size(self) -> int:
        return self.size

    @property
    def content(self) -> str:
        """The sha256 of the names and bytes of all files."""
        return self.hashed(self._found)

    @property
    def decoding(self) -> dict[str, Any]:
        return {"size": self.size, "test_share": self.test_share}

    def find(self, root: Path) -> Iterator[Located]:
        yield self._found

    def candidates(self, roots: Sequence[Path]) -> Iterator[Located]:
        """The folder at `path`, whatever the data folders are."""
        yield self._found

    def locate(self, roots: Sequence[Path]) -> str | None:
        return f"class folders in {self._base}" if self.path and self._base.is_dir() else None

    def hashed(self, found: Located) -> str:
        """The hash of the files, computed once for each state of them."""
        statuses = {path: _status(path) for path in found.files}
        return _remembered(_CONTENTS, statuses, lambda: super(Folder, self).hashed(found))

    @property
    def _base(self) -> Path:
        return Path(os.path.abspath(expanded(Path(self.path))))

    @property
    def _found(self) -> Located:
        return class_folders.located(self._listing, self.size, centre)

    @property
    def _listing(self) -> Listing:
        """The image files. Raises `InvalidInput` unless they form a data set."""
        require(self.is_named, f"data set folder has no path; {self.advice}")
        base = self._base
        require(base.is_dir(), f"data set folder: there is no folder {base}; correct its path")
        statuses = {path: _status(path) for path in _folders(base)}
        make = partial(_listed, base, self.test_share)
        return _remembered(_LISTINGS, statuses, make, str(self.test_share))


def _listed(base: Path, test_share: float | None) -> Listing:
    tests = class_folders.find_test_folder(base)
    split = (base / "train").is_dir()
    if split and tests is not None:
        require(
            test_share is None,
            f"{tests} holds the test images: leave out test_share of folder",
        )
        return class_folders.list_splits(base, _check_names)
    if test_share is None:
        lacks = "val or test: add one" if tests is None else f"train beside {tests.name}: add it"
        raise InvalidInput(
            f"{base} has no folder {lacks}, or test_share=0.2 to test on a share of each class"
        )
    splits = ("train",) if split else ()
    folder = base.joinpath(*splits)
    names = class_folders.class_names(folder)
    _check_names(folder, names)
    images, unread = class_folders.list_images(folder, names)
    train, test = _split(images, names, test_share)
    return Listing(base, splits, names, train, test, unread)


def _split(images: Labelled, names: Sequence[str], share: float) -> tuple[Labelled, Labelled]:
    """Split images into training and test images. Of each class, a rounded `share` is for testing;
    both sets have at least one image of it."""
    by_class = defaultdict(list)
    for image in images:
        by_class[image[1]].append(image)
    train: Labelled = []
    test: Labelled = []
    for label, members in by_class.items():
        count, name = len(members), visible(names[label])
        folder = members[0][0].parent
        require(count > 1, f"{folder} has one image: add another, to train on one and test on one")
        order = torch.randperm(count, generator=stream(0, "test images", name)).tolist()
        chosen = {*order[: min(max(round(share * count), 1), count - 1)]}
        train += [image for n, image in enumerate(members) if n not in chosen]
        test += [image for n, image in enumerate(members) if n in chosen]
    return train, test


def _check_names(folder: Path, names: Sequence[str]) -> None:
    count = f"{len(names)} class folder{'' if len(names) == 1 else 's'}"
    require(len(names) > 1, f"{folder} has {count}; at least 2 are needed")


def _folders(base: Path) -> Iterator[Path]:
    """The folders whose times of change tell when files are added or removed."""
    yield base
    splits = [base / name for name in ("train", *class_folders.TESTS) if (base / name).is_dir()]
    yield from splits
    for folder in splits or [base]:
        yield from (folder / name for name in class_folders.class_names(folder))


def _status(path: Path) -> Status:
    try:
        found = path.stat()
    except OSError:
        # Reading it will raise.
        return (0,)
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _remembered(
    known: dict[str, T],
    statuses: Mapping[Path, Status],
    make: Callable[[], T],
    setting: str = "",
) -> T:
    """What `make` returns, computed once for each state of the files: there may be 100,000 of them.

    known: the results remembered so far, by state
    setting: what the result depends on besides the files

    Nothing is remembered about files that have just changed, because a second change within the
    same tick of the file system's clock would not be noticed.
    """
    digest = hashlib.sha256(setting.encode())
    for path, status in statuses.items():
        digest.update(os.fsencode(f"{path}\0{status}\n"))
    state = digest.hexdigest()
    if state not in known:
        newest = max(status[-1] for status in statuses.values())
        settled = time.time_ns() - newest > SETTLED
        made = make()
        if not settled:
            return made
        if len(known) >= REMEMBERED:
            known.pop(next(iter(known)))
        known[state] = made
    return known[state]


_CONTENTS: dict[str, str] = {}
_LISTINGS: dict[str, Listing] = {}

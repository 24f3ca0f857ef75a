"""A user's own images: one folder for each class, any number of classes, any size.

`<path>/train/CLASS/*` and `<path>/val/CLASS/*`, or `test`; or `<path>/CLASS/*` with a declared
share of test images. Images become squares: of the shorter side, from the centre.
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
from bdbench.models.plugins.spec import place
from bdbench.models.rng import stream
from bdbench.storage.folders import expanded

EXAMPLE = "folder(path='DIR', size=64)"

SETTLED = 2_000_000_000
"""Nanoseconds after which a file system tells a second change from the first."""
REMEMBERED = 8

T = TypeVar("T")
Status = tuple[int, ...]
"""What changes with a file or folder: number, size, times of change in nanoseconds."""


@register("folder")
@dataclass(frozen=True)
class Folder(FileSource):
    """Class folders of a user, `path/{train,val}/CLASS/*.{JPEG,png,...}` or `path/CLASS/*`.

    train_images: number of training images to use, None for all; a fixed stratified subset
    path: the folder, relative to the current one unless it begins with / or ~
    size: height and width to which images are brought, pixels, from 8 to 1,024
    test_share: share of each class that is for testing, in (0, 1), where there is no folder val or
        test; a fixed random choice
    flip: whether a horizontally flipped image keeps its label
    """

    name: ClassVar[str] = "folder"
    learning_rate: ClassVar[float] = 0.1
    layouts: ClassVar[tuple[str, ...]] = (
        f"path/{class_folders.LAYOUT}, or test for val",
        "path/CLASS/*.{JPEG,png,...} with test_share",
    )

    path: str = place()
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
        # Those of the classes are not counted before the folder is looked at.
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
        """The sha256 of names and bytes of all files."""
        return self.hashed(self._found)

    @property
    def decoding(self) -> dict[str, Any]:
        return {"size": self.size, "test_share": self.test_share}

    def find(self, root: Path) -> Iterator[Located]:
        yield self._found

    def candidates(self, roots: Sequence[Path]) -> Iterator[Located]:
        """The one folder that is named, wherever data sets lie."""
        yield self._found

    def locate(self, roots: Sequence[Path]) -> str | None:
        return f"class folders in {self._base}" if self.path and self._base.is_dir() else None

    def hashed(self, found: Located) -> str:
        """Read once for each state of the files."""
        statuses = {path: _status(path) for path in found.files}
        return _remembered(_CONTENTS, statuses, lambda: super(Folder, self).hashed(found))

    @property
    def _base(self) -> Path:
        return Path(os.path.abspath(expanded(Path(self.path))))

    @property
    def _found(self) -> Located:
        base, listing = self._base, self._listing
        decode = partial(class_folders.decoded, listing, self.size, centre)
        return Located("class folders", base, listing.files, decode, left_out=listing.others)

    @property
    def _listing(self) -> Listing:
        """The files. Raises `InvalidInput` unless they make a data set."""
        require(self.is_named, f"data set folder has no path; {self.advice}")
        base = self._base
        require(base.is_dir(), f"data set folder: there is no folder {base}; path names one")
        statuses = {path: _status(path) for path in _folders(base)}
        make = partial(_listed, base, self.test_share)
        return _remembered(_LISTINGS, statuses, make, str(self.test_share))


def _listed(base: Path, test_share: float | None) -> Listing:
    tests = class_folders.folder_of_tests(base)
    parted = (base / "train").is_dir()
    if parted and tests is not None:
        require(
            test_share is None,
            f"{tests} holds the test images: leave out test_share of folder",
        )
        return class_folders.of_splits(base, _check_names)
    folder = base / "train" if parted else base
    names = class_folders.class_names(folder)
    _check_names(folder, names)
    if test_share is None:
        raise InvalidInput(
            f"{base}: val or test is missing beside train; for a share of each class, add"
            " test_share=0.2"
        )
    images, others = class_folders.labelled(folder, names)
    train, test = _divided(images, names, test_share)
    return Listing(names, train, test, class_folders.unread(base, others))


def _divided(images: Labelled, names: Sequence[str], share: float) -> tuple[Labelled, Labelled]:
    """Training and test images: of each class `share`, rounded, but at least one of either."""
    by_class = defaultdict(list)
    for image in images:
        by_class[image[1]].append(image)
    train: Labelled = []
    test: Labelled = []
    for label, members in by_class.items():
        count, name = len(members), visible(names[label])
        folder = members[0][0].parent
        require(count > 1, f"{folder}: has one image, there must be one to train and one to test")
        order = torch.randperm(count, generator=stream(0, "test images", name)).tolist()
        chosen = {*order[: min(max(round(share * count), 1), count - 1)]}
        train += [image for n, image in enumerate(members) if n not in chosen]
        test += [image for n, image in enumerate(members) if n in chosen]
    return train, test


def _check_names(folder: Path, names: Sequence[str]) -> None:
    count = f"{len(names)} class folder{'' if len(names) == 1 else 's'}"
    require(len(names) > 1, f"{folder}: has {count}, there must be at least 2")


def _folders(base: Path) -> Iterator[Path]:
    """Those that say by their time of change which files there are."""
    yield base
    splits = [base / name for name in ("train", *class_folders.TESTS) if (base / name).is_dir()]
    yield from splits
    for folder in splits or [base]:
        yield from (folder / name for name in class_folders.class_names(folder))


def _status(path: Path) -> Status:
    try:
        found = path.stat()
    except OSError:
        # Whoever reads it says so.
        return (0,)
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _remembered(
    known: dict[str, T],
    statuses: Mapping[Path, Status],
    make: Callable[[], T],
    setting: str = "",
) -> T:
    """What is made of files in some state, once for each state: folders have a hundred thousand.

    Nothing is remembered of files that have just changed, as a second change at the same tick of
    the clock would go unseen.
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

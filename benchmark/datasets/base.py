"""What a data set is, and how a stratified subset of it is drawn."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from bdbench.models.data import ImageSet
from bdbench.models.plugins.errors import require
from bdbench.models.rng import stream
from bdbench.storage.cache import Cache


@dataclass(frozen=True)
class Dataset:
    """The images that a cell trains on and is tested on, on the CPU.

    class_names: the name of each label
    sha256: hash of both sets, see `fingerprint`
    notes: facts that a record must state, such as a smaller training set
    """

    train: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]
    sha256: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source(ABC):
    """A data set before its images are loaded: its settings, and what is known about it.

    train_images: number of training images to use, None for all of them; a stratified random
        subset, the same for every seed, and for the same images in the same order

    Raises `InvalidInput` for fewer training images than classes.
    """

    name: ClassVar[str]

    train_images: int | None = None

    def __post_init__(self) -> None:
        require(
            self.count >= self.num_classes,
            f"train_images of {self.name} must be at least {self.num_classes}, one image for"
            f" each class, got {self.count}",
        )
        if type(self).train_images is None and self.train_images == self.train_size:
            object.__setattr__(self, "train_images", None)  # the same images, so the same cell

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """The number of classes; labels are 0 to one less."""

    @property
    @abstractmethod
    def train_size(self) -> int:
        """The number of images of the full training set."""

    @property
    @abstractmethod
    def flip(self) -> bool:
        """Whether a horizontally flipped image keeps its label."""

    @property
    @abstractmethod
    def image_size(self) -> int:
        """The height and width of images, in pixels."""

    @property
    @abstractmethod
    def learning_rate(self) -> float:
        """The initial learning rate for this data set, as in the paper if it uses the data set."""

    @property
    def count(self) -> int:
        """The number of training images in use, known before any image is read."""
        return self.train_size if self.train_images is None else self.train_images

    @property
    def content(self) -> str | None:
        """What identifies the images if the spec does not, such as a hash of the files in a user's
        folder; None if the spec does."""
        return None

    @property
    def is_named(self) -> bool:
        """Whether the settings say which images are meant; if not, other properties may raise."""
        return True

    @property
    def advice(self) -> str:
        """What a user can do if the images are not found."""
        return "name its folder with --data DIR or BDBENCH_DATA=DIR"

    @abstractmethod
    def load(self, roots: Sequence[Path], cache: Cache) -> Dataset:
        """Load the images.

        roots: folders to search for data sets, in this order

        Raises `InvalidInput` for missing, damaged or too few images.
        """

    @abstractmethod
    def locate(self, roots: Sequence[Path]) -> str | None:
        """Where the images would come from, in words; None if they are not found."""


def check_count(name: str, count: int, most: int) -> None:
    """Raises `InvalidInput` for more training images of a data set than there are."""
    require(count <= most, f"train_images of {name} must be at most {most:,}, got {count:,}")


def stratified(data: ImageSet, count: int, name: str) -> ImageSet:
    """A stratified random subset, the same for the same images in the same order, which it keeps;
    see `stratified_rows`."""
    return data[stratified_rows(data, count, name)]


def stratified_rows(data: ImageSet, count: int, name: str) -> Tensor:
    """A random choice of `count` images, as bool (n,): one image of every class that occurs, the
    others in proportion to class sizes, rounded by largest remainder.

    name: of the data set, which seeds the choice

    Raises `InvalidInput` if `data` has fewer than `count` images.
    """
    check_count(name, count, len(data))
    sizes = torch.bincount(data.labels, minlength=data.num_classes).tolist()
    rest = [max(size - 1, 0) for size in sizes]
    occurring = sum(size > 0 for size in sizes)
    spare, total = count - occurring, max(sum(rest), 1)
    quota = [min(size, 1) + spare * more // total for size, more in zip(sizes, rest, strict=True)]
    by_remainder = sorted(range(len(rest)), key=lambda c: (-(spare * rest[c] % total), c))
    for c in by_remainder[: count - sum(quota)]:
        quota[c] += 1
    rng = stream(0, "training subset", name)
    chosen = []
    for c, size in enumerate(sizes):
        rows = (data.labels == c).nonzero().flatten()
        chosen.append(rows[torch.randperm(size, generator=rng)[: quota[c]]])
    rows_chosen = torch.zeros(len(data), dtype=torch.bool)
    rows_chosen[torch.cat(chosen)] = True
    return rows_chosen


def fingerprint(train: ImageSet, test: ImageSet) -> str:
    """The sha256 of the shapes, images and labels of both sets, in hex digits."""
    digest = hashlib.sha256()
    for data in (train, test):
        digest.update(repr(tuple(data.images.shape)).encode())
        for tensor in (data.images, data.labels):
            digest.update(tensor.cpu().flatten().numpy().data)
    return digest.hexdigest()

"""What a data set is, and how one that lies in files is found, decoded once and cut to size."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from bdbench.models.data import ImageSet
from bdbench.models.plugins.errors import InvalidInput, check
from bdbench.models.rng import stream
from bdbench.storage.atomic import cache_root
from bdbench.storage.cache import Cache, Payload, sha256_of

DECODER = 1


@dataclass(frozen=True)
class Dataset:
    """The images that a cell trains on and is tested on, on the CPU.

    sha256: of the arrays of both sets, see `fingerprint`
    notes: facts that a record must carry, such as a smaller training set
    """

    train: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]
    sha256: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decoded:
    """All images of a data set, as they lie in its files."""

    train: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """A data set that lies in files.

    layout: how the files are arranged, in a few words
    folder: the folder that holds them all
    files: whatever the decoded arrays depend on
    decode: reads them, raises `InvalidInput` where they are damaged
    note: what is missing compared with the official data set, empty if nothing
    """

    layout: str
    folder: Path
    files: tuple[Path, ...]
    decode: Callable[[], Decoded]
    note: str = ""


@dataclass(frozen=True)
class Source(ABC):
    """Where the images of one data set come from, and what is known of it beforehand.

    train_images: number of training images to use, None for all of them. They are a fixed
        stratified random subset, the same for every seed.

    Raises `InvalidInput` if that is less than one image per class.
    """

    name: ClassVar[str]
    num_classes: ClassVar[int]
    train_size: ClassVar[int]
    """Images of the full training set."""
    flip: ClassVar[bool]
    """Whether a horizontally flipped image keeps its label."""

    train_images: int | None = None

    def __post_init__(self) -> None:
        check(
            self.count >= self.num_classes,
            f"train_images of {self.name} must be at least {self.num_classes}, one image for"
            f" each class, got {self.count}",
        )

    @property
    @abstractmethod
    def image_size(self) -> int:
        """Height and width, pixels."""

    @property
    @abstractmethod
    def learning_rate(self) -> float:
        """The initial one, as the paper sets it for this data set."""

    @property
    def count(self) -> int:
        """Number of training images that will be used, known before anything is read."""
        return self.train_size if self.train_images is None else self.train_images

    @abstractmethod
    def load(self, roots: Sequence[Path], cache: Cache) -> Dataset:
        """The images. Raises `InvalidInput` where they are missing, damaged or too few."""

    @abstractmethod
    def locate(self, roots: Sequence[Path]) -> str | None:
        """Where the images would come from, in words; None if they are nowhere."""


@dataclass(frozen=True)
class FileSource(Source):
    """A data set that lies in files below one of the data folders."""

    layouts: ClassVar[tuple[str, ...]]
    """What is accepted, as paths below a data folder."""
    test_size: ClassVar[int]
    """Images of the official test set."""

    @abstractmethod
    def find(self, root: Path) -> Iterator[Found]:
        """The layouts that are there below `root`, the preferred one first."""

    def load(self, roots: Sequence[Path], cache: Cache) -> Dataset:
        found = self._first(roots)
        if found is None:
            searched = ", ".join(str(root) for root in roots) or "no folder"
            raise InvalidInput(
                f"data set {self.name} not found in {searched}; accepted are"
                f" {' or '.join(self.layouts)}; say where with --data DIR or BDBENCH_DATA=DIR"
            )
        key = {"name": self.name, "files": content_of(found), "decoder": DECODER}
        entry = cache.fetch("datasets", key, lambda: _pack(found.decode()))
        train, test = (
            ImageSet(entry.tensors[f"{s}_images"], entry.tensors[f"{s}_labels"], self.num_classes)
            for s in ("train", "test")
        )
        notes = [found.note] if found.note else []
        for split, there, official in (
            ("training", len(train), self.train_size),
            ("test", len(test), self.test_size),
        ):
            if there != official:
                notes.append(f"{there:,} {split} images, the official {self.name} has {official:,}")
        if self.train_images is not None:
            train = stratified(train, self.train_images, self.name)
        names = tuple(entry.meta["class_names"])
        return Dataset(train, test, names, fingerprint(train, test), tuple(notes))

    def locate(self, roots: Sequence[Path]) -> str | None:
        found = self._first(roots)
        return None if found is None else f"{found.layout} in {found.folder}"

    def _first(self, roots: Sequence[Path]) -> Found | None:
        candidates = [found for root in roots for found in self.find(root)]
        # The first one, but an incomplete set only where there is no complete one.
        return min(candidates, key=lambda found: bool(found.note), default=None)


def roots(data: Path | None = None) -> list[Path]:
    """Folders to search, in order: `data`, `$BDBENCH_DATA`, `data` in the cache."""
    variable = os.environ.get("BDBENCH_DATA")
    named = [data, Path(variable) if variable else None]
    searched = [folder.expanduser() for folder in named if folder is not None]
    return list(dict.fromkeys([*searched, cache_root() / "data"]))


def stratified(data: ImageSet, count: int, name: str) -> ImageSet:
    """A fixed random subset in the original order: one image of every class that occurs, the others
    in proportion by largest remainder.

    Raises `InvalidInput` if `data` has fewer than `count` images.
    """
    check(
        count <= len(data),
        f"train_images of {name} must be at most {len(data):,}, all there are, got {count:,}",
    )
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
    return data[torch.cat(chosen).sort().values]


def fingerprint(train: ImageSet, test: ImageSet) -> str:
    """The sha256 of shape, images and labels of both sets, in hex digits."""
    digest = hashlib.sha256()
    for data in (train, test):
        digest.update(repr(tuple(data.images.shape)).encode())
        for tensor in (data.images, data.labels):
            digest.update(tensor.cpu().flatten().numpy().data)
    return digest.hexdigest()


def content_of(found: Found) -> str:
    """The sha256 of names and bytes of all files. Raises `InvalidInput` for an unreadable one."""
    digest = hashlib.sha256()
    for path in sorted(found.files):
        # To open a pipe is to wait for somebody who writes to it.
        check(path.is_file() or path.is_dir() or not path.exists(), f"{path}: is not a file")
        try:
            line = f"{path.relative_to(found.folder).as_posix()}\0{sha256_of(path)}\n"
        except OSError as error:
            raise InvalidInput(f"cannot read {path}: {error.strerror or error}") from None
        digest.update(line.encode())
    return digest.hexdigest()


def _pack(decoded: Decoded) -> Payload:
    tensors: dict[str, Tensor] = {
        "train_images": decoded.train.images,
        "train_labels": decoded.train.labels,
        "test_images": decoded.test.images,
        "test_labels": decoded.test.labels,
    }
    return tensors, {"class_names": list(decoded.class_names)}

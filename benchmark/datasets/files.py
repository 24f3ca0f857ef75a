"""A data set that lies in files: found, decoded once and kept in the cache."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from bdbench.datasets.base import Dataset, Source, fingerprint, stratified
from bdbench.models.data import ImageSet
from bdbench.models.plugins.errors import InvalidInput, check
from bdbench.storage.cache import Cache, Payload, sha256_of

DECODER = 2


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
    left_out: what lies there and is not read, in words; empty if nothing
    """

    layout: str
    folder: Path
    files: tuple[Path, ...]
    decode: Callable[[], Decoded]
    note: str = ""
    left_out: str = ""


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
        notes = [note for note in (found.note, found.left_out) if note]
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

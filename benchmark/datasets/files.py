"""A data set that lies in files: found, decoded once and kept in the cache."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from bdbench.datasets.archives import Archive
from bdbench.datasets.base import Dataset, Source, fingerprint, stratified
from bdbench.models.data import ImageSet
from bdbench.models.plugins.errors import InvalidInput, require
from bdbench.storage.cache import Cache, Payload, sha256_of

DECODER = 2


@dataclass(frozen=True)
class Decoded:
    """All images of a data set, as they lie in its files."""

    train: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class Located:
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
    archives: ClassVar[tuple[Archive, ...]] = ()
    """What `bdbench data get` downloads and unpacks in the folder of the data set's name; nothing
    where there is no official place."""

    @property
    @abstractmethod
    def test_size(self) -> int:
        """Images of the official test set."""

    @property
    def advice(self) -> str:
        offer = f"`bdbench data get {self.name}` gets it, or " if self.archives else ""
        return f"{offer}{super().advice}"

    @abstractmethod
    def find(self, root: Path) -> Iterator[Located]:
        """The layouts that are there below `root`, the preferred one first."""

    def candidates(self, roots: Sequence[Path]) -> Iterator[Located]:
        """The layouts that are there, folder by folder."""
        for root in roots:
            yield from self.find(root)

    def hashed(self, found: Located) -> str:
        """See `content_of`."""
        return content_of(found)

    def load(self, roots: Sequence[Path], cache: Cache) -> Dataset:
        found = self._first(roots)
        if found is None:
            raise InvalidInput(self._absence(roots))
        key = {"name": self.name, "files": self.hashed(found), "decoder": DECODER, **self.decoding}
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
            train = stratified(train, self.count, self.name)
        names = tuple(entry.meta["class_names"])
        return Dataset(train, test, names, fingerprint(train, test), tuple(notes))

    @property
    def decoding(self) -> dict[str, Any]:
        """The settings, as JSON values, on which decoded images depend beside the files."""
        return {}

    def is_whole(self, roots: Sequence[Path]) -> bool:
        """Whether the official data set is there, and nothing is missing of it."""
        found = self._first(roots)
        return found is not None and not found.note

    def locate(self, roots: Sequence[Path]) -> str | None:
        found = self._first(roots)
        return None if found is None else f"{found.layout} in {found.folder}"

    def _absence(self, roots: Sequence[Path]) -> str:
        searched = ", ".join(str(root) for root in roots) or "no folder"
        accepted = " or ".join(self.layouts)
        return (
            f"data set {self.name} not found in {searched}; accepted are {accepted}; {self.advice}"
        )

    def _first(self, roots: Sequence[Path]) -> Located | None:
        # The first one, but an incomplete set only where there is no complete one.
        return min(self.candidates(roots), key=lambda found: bool(found.note), default=None)


def content_of(found: Located) -> str:
    """The sha256 of names and bytes of all files. Raises `InvalidInput` for an unreadable one."""
    digest = hashlib.sha256()
    for path in sorted(found.files):
        # To open a pipe is to wait for somebody who writes to it.
        require(path.is_file() or path.is_dir() or not path.exists(), f"{path}: is not a file")
        try:
            line = f"{path.relative_to(found.folder).as_posix()}\0{sha256_of(path)}\n"
        except OSError as error:
            raise InvalidInput(f"cannot read {path}: {error.strerror or error}") from None
        # The names of files need not be text.
        digest.update(os.fsencode(line))
    return digest.hexdigest()


def _pack(decoded: Decoded) -> Payload:
    tensors: dict[str, Tensor] = {
        "train_images": decoded.train.images,
        "train_labels": decoded.train.labels,
        "test_images": decoded.test.images,
        "test_labels": decoded.test.labels,
    }
    return tensors, {"class_names": list(decoded.class_names)}

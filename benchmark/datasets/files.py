"""Data sets stored in files: they are located, decoded once and kept in the cache."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor

from bdbench.datasets.archives import Archive
from bdbench.datasets.base import Dataset, Source, check_count, fingerprint, stratified
from bdbench.datasets.images import ImageCollector
from bdbench.datasets.registry import datasets
from bdbench.models.data import ImageSet
from bdbench.models.plugins import spec
from bdbench.models.plugins.errors import InvalidInput, require
from bdbench.models.plugins.local import code_of
from bdbench.storage.cache import Cache, Payload, sha256_of
from bdbench.storage.keys import digest_of

DECODER = 4
"""Part of the cache key: raise it when images are decoded differently."""


@dataclass(frozen=True)
class Decoded:
    """All images of a data set, decoded from its files.

    note: what the files hold and is not read, empty if nothing
    """

    train: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]
    note: str = ""

    @classmethod
    def of(cls, train: ImageCollector, test: ImageCollector, class_names: tuple[str, ...]) -> Self:
        """The images of two collectors."""
        several = train.several + test.several
        note = f"of {several:,} images with several frames or pages, the first is used"
        return cls(train.finish(), test.finish(), class_names, note if several else "")


@dataclass(frozen=True)
class Located:
    """The files of a data set that were found.

    layout: how the files are arranged, in a few words
    folder: the folder that holds all of them
    files: all files that the decoded images depend on
    decode: reads the files; raises `InvalidInput` if they are damaged
    note: what the official data set has and this one lacks, empty if nothing
    left_out: which files in the folder are not read, empty if none
    """

    layout: str
    folder: Path
    files: tuple[Path, ...]
    decode: Callable[[], Decoded]
    note: str = ""
    left_out: str = ""


@dataclass(frozen=True)
class FileSource(Source):
    """A data set stored in files below one of the data folders."""

    layouts: ClassVar[tuple[str, ...]]
    """The accepted layouts, as paths below a data folder."""
    archives: ClassVar[tuple[Archive, ...]] = ()
    """The archives that `bdbench data get` downloads and unpacks to the folder named like the data
    set; empty if there is no official download."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.name, self.count, self.train_size)

    @property
    @abstractmethod
    def test_size(self) -> int:
        """The number of images of the official test set."""

    @property
    def advice(self) -> str:
        offer = f"download it with `bdbench data get {self.name}`, or " if self.archives else ""
        return f"{offer}{super().advice}"

    @abstractmethod
    def find(self, root: Path) -> Iterator[Located]:
        """The layouts found below `root`, the preferred one first."""

    def candidates(self, roots: Sequence[Path]) -> Iterator[Located]:
        """The layouts found, folder by folder. A folder that cannot be read matters only where the
        others have none: then this raises `InvalidInput`."""
        unread, found = "", False
        for root in roots:
            try:
                for each in self.find(root):
                    found = True
                    yield each
            except OSError as error:
                unread = unread or f"cannot read {error.filename or root}: {error.strerror}"
        require(found or not unread, unread)

    def hashed(self, found: Located) -> str:
        """The hash of the files, see `content_of`."""
        return content_of(found)

    def load(self, roots: Sequence[Path], cache: Cache) -> Dataset:
        found = self._first(roots)
        if found is None:
            raise InvalidInput(self._absence(roots))
        key = {"name": self.name, "files": self.hashed(found), "decoder": DECODER, **self.decoding}
        entry = cache.fetch("datasets", {**key, **self._code}, lambda: _pack(found.decode()))
        train, test = (
            ImageSet(entry.tensors[f"{s}_images"], entry.tensors[f"{s}_labels"], self.num_classes)
            for s in ("train", "test")
        )
        notes = [note for note in (found.note, found.left_out, entry.meta["note"]) if note]
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
        """The settings, as JSON values, that decoded images depend on besides the files: all but
        the number of training images and paths."""
        return {
            name: repr(field.accept(getattr(self, name), self.name))
            for name, field in spec.fields_of(type(self)).items()
            if name != "train_images" and not field.is_path
        }

    @property
    def _code(self) -> dict[str, str]:
        """The hash of the code of a data set that is not built in; `DECODER` stands for ours."""
        if datasets.is_built_in(type(self)):
            return {}
        return {"code": digest_of(code_of(type(self)).text)}

    def is_complete(self, roots: Sequence[Path]) -> bool:
        """Whether the official data set was found, and is complete."""
        found = self._first(roots)
        return found is not None and not found.note

    def locate(self, roots: Sequence[Path]) -> str | None:
        found = self._first(roots)
        return None if found is None else f"{found.layout} in {found.folder}"

    def _absence(self, roots: Sequence[Path]) -> str:
        searched = ", ".join(str(root) for root in roots) or "no folder"
        accepted = " or ".join(self.layouts)
        where = f"data set {self.name} not found in {searched}"
        return f"{where}; accepted layouts: {accepted}; {self.advice}"

    def _first(self, roots: Sequence[Path]) -> Located | None:
        # The first one, but an incomplete one only if there is no complete one.
        return min(self.candidates(roots), key=lambda found: bool(found.note), default=None)


def content_of(found: Located) -> str:
    """See `hash_of`."""
    return hash_of(found.folder, found.files)


def hash_of(folder: Path, files: Iterable[Path]) -> str:
    """The sha256 of names and bytes of files in a folder. Raises `InvalidInput` for an unreadable
    file."""
    digest = hashlib.sha256()
    for path in sorted(files):
        # Opening a FIFO would block.
        require(path.is_file() or path.is_dir() or not path.exists(), f"{path} is not a file")
        try:
            line = f"{path.relative_to(folder).as_posix()}\0{sha256_of(path)}\n"
        except OSError as error:
            raise InvalidInput(f"cannot read {path}: {error.strerror or error}") from None
        # File names need not be valid text.
        digest.update(os.fsencode(line))
    return digest.hexdigest()


def _pack(decoded: Decoded) -> Payload:
    tensors: dict[str, Tensor] = {
        "train_images": decoded.train.images,
        "train_labels": decoded.train.labels,
        "test_images": decoded.test.images,
        "test_labels": decoded.test.labels,
    }
    return tensors, {"class_names": list(decoded.class_names), "note": decoded.note}

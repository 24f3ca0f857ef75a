"""Content-addressed store of what is expensive to make: decoded data, poisoned sets, networks.

An entry is `<root>/<kind>/<digest>.safetensors` beside `<digest>.json`, where the digest is the
hash of everything the entry depends on. The JSON is written last, holds hashes of the other file
and of its own content, and so marks the entry as complete. Nothing here is ever unpickled. What
else lies under the root, and how all of it is kept in order, is in `maintenance.py`; whose the
root is, in `mark.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from filelock import FileLock
from safetensors import SafetensorError
from torch import Tensor

from bdbench.storage import mark
from bdbench.storage.atomic import Unusable, check_writable, write_atomically
from bdbench.storage.keys import digest_of

Payload = tuple[dict[str, Tensor], dict[str, Any]]

DAMAGE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
    SafetensorError,
)
"""What reading an entry may raise that is not whole."""


class DamagedCache(UserWarning):
    """A cache entry did not match its hash and was made anew."""


class UnwritableCache(UserWarning):
    """A cache entry could not be written, so whoever needs it next makes it again."""


@dataclass(frozen=True)
class CacheEntry:
    """tensors: on the CPU, by name. meta: JSON values. fresh: made by this very call."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    fresh: bool


def sha256_of(path: Path) -> str:
    """Of the bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Cache:
    """The store under one folder, which is made on first use."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def prepare(self) -> None:
        """Make the folder, remove what dead writers left in it, and raise `InvalidInput` where it
        cannot be written or is somebody else's."""
        mark.claim(self.root)
        check_writable(self.root)
        mark.tidy(self.root)

    def fetch(
        self,
        kind: str,
        key: Mapping[str, Any],
        build: Callable[[], Payload],
        suffices: Callable[[Mapping[str, Any]], bool] = lambda meta: True,
    ) -> CacheEntry:
        """The entry for `key`, made by `build` if it is missing or damaged, or its meta does not
        suffice.

        Of several processes that ask at once, one builds and the others wait. A damaged entry is
        warned of (`DamagedCache`) and replaced. One that cannot be written is warned of
        (`UnwritableCache`), and the caller has what was made. Raises `InvalidInput` for a folder
        that is somebody else's.
        """
        digest = digest_of(key)
        with self._alone(kind, digest):
            entry = self._read(kind, digest)
            if entry is None or not suffices(entry.meta):
                made = self.make(kind, build)
                self._keep(kind, digest, dict(key), made)
                entry = CacheEntry(*made, fresh=True)
            return entry

    def make(self, kind: str, build: Callable[[], Payload]) -> Payload:
        """What is to be stored, where it is not there."""
        return build()

    @contextmanager
    def _alone(self, kind: str, digest: str) -> Iterator[None]:
        """Hold the lock of an entry. Where there can be none, two processes may make the same."""
        lock = self.lock(kind, digest)
        with suppress(Unusable, OSError, NotImplementedError):
            mark.claim(self.root)
            (self.root / kind).mkdir(exist_ok=True)
            lock.acquire()
        try:
            yield
        finally:
            with suppress(OSError):
                lock.release()

    def lock(self, kind: str, digest: str) -> FileLock:
        """What whoever makes or removes an entry must hold."""
        return FileLock(self.root / kind / f"{digest}.lock")

    def load(self, kind: str, digest: str) -> CacheEntry:
        """An entry. Raises one of `DAMAGE` unless it is whole."""
        document = self._described(kind, digest)
        payload = self.root / kind / f"{digest}.safetensors"
        if sha256_of(payload) != document["sha256"]:
            raise ValueError(f"{payload.name} is not what was written")
        return CacheEntry(safetensors.torch.load_file(payload), document["meta"], fresh=False)

    def key_of(self, kind: str, digest: str) -> dict[str, Any]:
        """What an entry depends on. Raises one of `DAMAGE` where that cannot be read."""
        return dict(self._described(kind, digest)["key"])

    def _described(self, kind: str, digest: str) -> dict[str, Any]:
        """The JSON of an entry. Raises one of `DAMAGE` unless it is whole and its own."""
        path = self.root / kind / f"{digest}.json"
        if not path.is_file():
            # To open a pipe is to wait for somebody who writes to it.
            raise ValueError(f"{path.name} is no file")
        document: dict[str, Any] = json.loads(path.read_bytes())
        stated = document.pop("digest")
        if (digest_of(document), digest_of(document["key"])) != (stated, digest):
            raise ValueError(f"{path.name} is not what was written")
        return document

    def _read(self, kind: str, digest: str) -> CacheEntry | None:
        description = self.root / kind / f"{digest}.json"
        if not os.path.lexists(description):
            return None
        try:
            entry = self.load(kind, digest)
        except DAMAGE:
            warnings.warn(
                f"cache entry {kind}/{digest} is damaged and is made anew",
                DamagedCache,
                stacklevel=3,
            )
            return None
        with suppress(OSError):
            os.utime(description, follow_symlinks=False)
        return entry

    def _keep(self, kind: str, digest: str, key: dict[str, Any], made: Payload) -> None:
        """Write an entry, or say that it cannot be."""
        try:
            mark.claim(self.root)
            self._write(self.root / kind, digest, key, made)
        except Unusable as error:
            warnings.warn(
                f"the cache goes without {kind}/{digest}: {error}", UnwritableCache, stacklevel=3
            )

    def _write(self, folder: Path, digest: str, key: dict[str, Any], made: Payload) -> None:
        tensors, meta = made
        apart = {
            name: t.clone(memory_format=torch.contiguous_format) for name, t in tensors.items()
        }
        content = safetensors.torch.save(apart)
        description = {"key": key, "meta": meta, "sha256": hashlib.sha256(content).hexdigest()}
        signed = {**description, "digest": digest_of(description)}
        payload = folder / f"{digest}.safetensors"
        write_atomically(payload, content)
        try:
            write_atomically(folder / f"{digest}.json", json.dumps(signed, indent=1).encode())
        except Unusable:
            with suppress(OSError):
                payload.unlink(missing_ok=True)
            raise

"""Content-addressed store of what is expensive to make: decoded data, poisoned sets, networks, and
the embeddings that figures show.

An entry is `<root>/<kind>/<digest>.safetensors` beside `<digest>.json`, where the digest is the
hash of everything the entry depends on. The JSON is written last and holds the hashes of the other
file and of its own content, so it marks the entry as complete. Every read checks these hashes, and
nothing is ever unpickled. `mark.py` tells which folders and files are ours, `maintenance.py` lists
and clears them. Importing this module, `put` and `get` need no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy
import safetensors.numpy
from filelock import FileLock
from numpy.typing import NDArray
from safetensors import SafetensorError

from bdbench.models.plugins.notices import notify
from bdbench.storage import mark
from bdbench.storage.atomic import Unusable, check_writable, write_atomically
from bdbench.storage.keys import digest_of
from bdbench.storage.locks import lock_on

if TYPE_CHECKING:
    from torch import Tensor

Payload = tuple[dict[str, "Tensor"], dict[str, Any]]
Arrays = dict[str, NDArray[numpy.generic]]

DAMAGE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
    SafetensorError,
)
"""What reading a corrupt entry may raise."""


class DamagedCache(UserWarning):
    """A cache entry did not match its hashes and was rebuilt."""


class UnwritableCache(UserWarning):
    """A cache entry could not be written, so it is rebuilt when it is needed again."""


@dataclass(frozen=True)
class CacheEntry:
    """tensors: on the CPU, by name. meta: JSON values. fresh: built by this call."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    fresh: bool


def sha256_of(path: Path) -> str:
    """64 hex digits, of the bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Cache:
    """The store under one folder, which is created on first use.

    waiting: gives a context in which it waits while another process builds an entry
    """

    waiting: Callable[[], AbstractContextManager[None]] = staticmethod(nullcontext)

    def __init__(self, root: Path) -> None:
        self.root = root

    def prepare(self) -> None:
        """Create the folder and remove temporary files of dead writers. Raises `InvalidInput` for a
        folder that cannot be written or is not a cache of bdbench."""
        mark.claim(self.root)
        check_writable(self.root)
        mark.tidy(self.root)

    def fetch(
        self,
        kind: str,
        key: Mapping[str, Any],
        build: Callable[[], Payload],
        suffices: Callable[[Mapping[str, Any]], bool] = lambda meta: True,
        keep: bool = True,
    ) -> CacheEntry:
        """The entry for `key`, built by `build` if it is missing or corrupt, or its meta does not
        suffice.

        keep: store what is built

        Of several processes that ask at once, one builds and the others wait. A corrupt entry is
        rebuilt with a warning (`DamagedCache`). Where an entry cannot be written, the caller gets
        what was built, with a warning (`UnwritableCache`). Raises `InvalidInput` for a folder that
        is not a cache of bdbench.
        """
        digest = digest_of(key)
        with self._alone(kind, digest):
            entry = self._read(kind, digest)
            if entry is None or not suffices(entry.meta):
                tensors, meta = self.make(kind, build)
                if keep:
                    self._keep(kind, digest, dict(key), _serialised(tensors), meta)
                entry = CacheEntry(tensors, meta, fresh=True)
            return entry

    def find(
        self, kind: str, key: Mapping[str, Any], suffices: Callable[[Mapping[str, Any]], bool]
    ) -> CacheEntry | None:
        """The entry that `fetch` would not build; waits while another process builds it."""
        digest = digest_of(key)
        with self._alone(kind, digest):
            entry = self._read(kind, digest)
        return entry if entry is not None and suffices(entry.meta) else None

    def make(self, kind: str, build: Callable[[], Payload]) -> Payload:
        """Build a missing entry."""
        return build()

    def put(
        self,
        kind: str,
        key: Mapping[str, Any],
        arrays: Mapping[str, NDArray[numpy.generic]],
        meta: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Store arrays under `key`, in place of those stored before.

        meta: JSON values beside them

        Warns (`UnwritableCache`) where they cannot be written. Raises `InvalidInput` for a folder
        that is not a cache of bdbench.
        """
        whole = {name: numpy.ascontiguousarray(array) for name, array in arrays.items()}
        digest = digest_of(key)
        with self._alone(kind, digest):
            self._keep(kind, digest, dict(key), safetensors.numpy.save(whole), dict(meta))

    def get(self, kind: str, key: Mapping[str, Any]) -> Arrays | None:
        """The arrays that `put` stored, None where they are missing or corrupt."""
        digest = digest_of(key)
        try:
            content = self._checked(kind, digest, self._described(kind, digest)).read_bytes()
            arrays: Arrays = safetensors.numpy.load(content)
        except DAMAGE:
            return None
        self._touch(kind, digest)
        return arrays

    @contextmanager
    def _alone(self, kind: str, digest: str) -> Iterator[None]:
        """Hold the lock of an entry. Where the file system has no locks, two processes may build
        the same entry."""
        lock = self.lock(kind, digest)
        with suppress(Unusable, OSError, NotImplementedError):
            mark.claim(self.root)
            (self.root / kind).mkdir(exist_ok=True)
            with self.waiting():
                lock.acquire()
        try:
            yield
        finally:
            with suppress(OSError):
                lock.release()

    def lock(self, kind: str, digest: str) -> FileLock:
        """The lock that a process holds while it builds, reads or removes an entry."""
        return lock_on(self.root / kind / f"{digest}.lock")

    def load(self, kind: str, digest: str) -> CacheEntry:
        """An entry. Raises one of `DAMAGE` if it is missing or corrupt."""
        import safetensors.torch

        document = self._described(kind, digest)
        payload = self._checked(kind, digest, document)
        return CacheEntry(safetensors.torch.load_file(payload), document["meta"], fresh=False)

    def key_of(self, kind: str, digest: str) -> dict[str, Any]:
        """The key of an entry. Raises one of `DAMAGE` where it cannot be read."""
        return dict(self._described(kind, digest)["key"])

    def meta_of(self, kind: str, digest: str) -> dict[str, Any]:
        """The JSON values beside an entry. Raises one of `DAMAGE` where they cannot be read."""
        return dict(self._described(kind, digest)["meta"])

    def _checked(self, kind: str, digest: str, document: Mapping[str, Any]) -> Path:
        """The path of the payload, whose hash is that in the description. Raises one of `DAMAGE`
        otherwise."""
        payload = self.root / kind / f"{digest}.safetensors"
        # A FIFO, which would block, is no file.
        if not payload.is_file() or sha256_of(payload) != document["sha256"]:
            raise ValueError(f"{payload.name} is missing or does not match its hash")
        return payload

    def _described(self, kind: str, digest: str) -> dict[str, Any]:
        """The JSON of an entry. Raises one of `DAMAGE` if it is missing, corrupt or of another
        entry."""
        path = self.root / kind / f"{digest}.json"
        if not path.is_file():
            raise ValueError(f"{path.name} is missing")
        document: dict[str, Any] = json.loads(path.read_bytes())
        stated = document.pop("digest")
        if (digest_of(document), digest_of(document["key"])) != (stated, digest):
            raise ValueError(f"{path.name} does not match its hash")
        return document

    def _read(self, kind: str, digest: str) -> CacheEntry | None:
        description = self.root / kind / f"{digest}.json"
        if not os.path.lexists(description):
            return None
        try:
            entry = self.load(kind, digest)
        except DAMAGE:
            notify(
                f"cache entry {kind}/{digest} is corrupt; rebuilding it",
                DamagedCache,
                stacklevel=3,
            )
            return None
        self._touch(kind, digest)
        return entry

    def _touch(self, kind: str, digest: str) -> None:
        """Note that an entry was used now."""
        with suppress(OSError):
            os.utime(self.root / kind / f"{digest}.json", follow_symlinks=False)

    def _keep(
        self, kind: str, digest: str, key: dict[str, Any], content: bytes, meta: dict[str, Any]
    ) -> None:
        """Write an entry, or warn that it cannot be written."""
        try:
            mark.claim(self.root)
            self._write(self.root / kind, digest, key, content, meta)
        except Unusable as error:
            notify(f"{kind}/{digest} is not cached: {error}", UnwritableCache, stacklevel=3)

    def _write(
        self, folder: Path, digest: str, key: dict[str, Any], content: bytes, meta: dict[str, Any]
    ) -> None:
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


def _serialised(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors as the content of a safetensors file, which cannot hold tensors that share memory."""
    import safetensors.torch
    import torch

    apart = {name: t.clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    return safetensors.torch.save(apart)

"""Content-addressed store of what is expensive to make: decoded data, poisoned sets, networks.

An entry is `<root>/<kind>/<digest>.safetensors` beside `<digest>.json`, where the digest is the
hash of everything the entry depends on. The JSON is written last, holds hashes of the other file
and of its own content, and so marks the entry as complete. Nothing here is ever unpickled.

Two more kinds lie beside the entries, `artefacts` and `checkpoints`: files that have the hash of
their bytes in their names.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from filelock import FileLock, Timeout
from rich.filesize import decimal
from safetensors import SafetensorError
from tabulate import tabulate
from torch import Tensor

from attacks import attacks
from benchmark.files import write_atomically
from models import models, spec
from models.errors import InvalidInput, check
from models.registry import Registry

Payload = tuple[dict[str, Tensor], dict[str, Any]]

KINDS = {
    "datasets": "decoded data sets",
    "poisoned": "poisoned sets and prepared attacks",
    "undefended": "networks trained with no defense",
    "artefacts": "what figures are drawn from",
    "checkpoints": "unfinished cells",
}
HASHED = {"artefacts": 16, "checkpoints": 32}
"""The kinds that are no entries, and how many digits of its hash end the name of a file."""
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
STALE = 7 * 24 * 3600.0
"""Seconds after which checkpoints that nobody went on from are garbage."""
BUSY = 3600.0
"""Seconds for which files that no lock guards are taken to be in use."""
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class DamagedCache(UserWarning):
    """A cache entry did not match its hash and was made anew."""


@dataclass(frozen=True)
class Entry:
    """tensors: on the CPU, by name. meta: JSON values. fresh: made by this very call."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    fresh: bool


@dataclass(frozen=True)
class Stored:
    """What lies in the cache under one name: an entry, an artefact, a folder of checkpoints.

    files: whole or not
    leftovers: temporary files, whose writers may be dead, and the lock of an entry without files
    size: bytes of all
    used: when last, seconds since 1970
    """

    kind: str
    name: str
    files: tuple[Path, ...]
    leftovers: tuple[Path, ...]
    size: int
    used: float

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"

    @property
    def age(self) -> float:
        """Seconds since it was used."""
        return time.time() - self.used

    @property
    def busy(self) -> bool:
        """Whether a running cell may be about to write here, where it has no lock to say so."""
        return self.kind == "checkpoints" and self.age < BUSY


def digest_of(value: Any) -> str:
    """32 hex digits that stand for a JSON value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def sha256_of(path: Path) -> str:
    """Of the bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Cache:
    """The store under one folder, which is made on first use."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def fetch(self, kind: str, key: Mapping[str, Any], build: Callable[[], Payload]) -> Entry:
        """The entry for `key`, made by `build` if it is missing or damaged.

        Of several processes that ask at once, one builds and the others wait. A damaged entry is
        warned of (`DamagedCache`) and replaced. Raises `InvalidInput` for a folder that cannot be
        written or is full.
        """
        folder, digest = self.root / kind, digest_of(key)
        lock = FileLock(folder / f"{digest}.lock")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError as error:
            reason = error.strerror or error
            raise InvalidInput(f"the cache folder {folder} is not usable: {reason}") from error
        try:
            entry = self._read(folder, digest)
            if entry is None:
                for leftover in folder.glob(f".{digest}.*.tmp"):
                    # Its writer was killed: a living one would hold the lock.
                    leftover.unlink(missing_ok=True)
                tensors, meta = build()
                self._write(folder, digest, dict(key), tensors, meta)
                entry = Entry(tensors, meta, fresh=True)
            return entry
        finally:
            lock.release()

    def _read(self, folder: Path, digest: str) -> Entry | None:
        description = folder / f"{digest}.json"
        if not description.exists():
            return None
        try:
            entry = _load(folder, digest)
        except DAMAGE:
            warnings.warn(
                f"cache entry {folder.name}/{digest} is damaged and is made anew",
                DamagedCache,
                stacklevel=3,
            )
            return None
        with suppress(OSError):
            os.utime(description)
        return entry

    def _write(
        self,
        folder: Path,
        digest: str,
        key: dict[str, Any],
        tensors: dict[str, Tensor],
        meta: dict[str, Any],
    ) -> None:
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
        except InvalidInput:
            payload.unlink(missing_ok=True)
            raise

    def contents(self, kind: str) -> list[Stored]:
        """All there is of a kind, last used first, with what is damaged or half written."""
        folder = self.root / kind
        groups: dict[str, list[Path]] = defaultdict(list)
        for path in folder.rglob("*"):
            if path.suffix in (".json", ".safetensors", ".tmp", ".lock") and path.is_file():
                # A temporary file has the name of its file after a dot.
                first = path.relative_to(folder).parts[0]
                groups[first.removeprefix(".").partition(".")[0]].append(path)
        found = [_stored(kind, name, paths) for name, paths in groups.items()]
        return sorted(found, key=lambda stored: (-stored.used, stored.name))

    def key_of(self, stored: Stored) -> dict[str, Any]:
        """What an entry depends on. Raises one of `DAMAGE` where that cannot be read."""
        return dict(_described(self.root / stored.kind, stored.name)["key"])

    def damaged_files(self, stored: Stored) -> tuple[Path, ...]:
        """Those of its files that no run would use; of an entry either all or none."""
        if stored.kind in HASHED:
            return tuple(path for path in stored.files if not _fits_its_name(path, stored.kind))
        try:
            _load(self.root / stored.kind, stored.name)
        except DAMAGE:
            return tuple(path for path in stored.files if path.exists())
        return ()

    @contextmanager
    def claim(self, stored: Stored) -> Iterator[bool]:
        """Whether no other process is at work on an entry, nor will be in the block. Other kinds
        have no lock, and are free."""
        path = self.root / stored.kind / f"{stored.name}.lock"
        lock, existed = FileLock(path), path.exists()
        if stored.kind not in HASHED:
            try:
                lock.acquire(blocking=False)
            except Timeout:
                yield False
                return
            except OSError:
                # Nobody has a lock here, where none can be written.
                pass
        try:
            yield True
        finally:
            if not existed:
                with suppress(OSError):
                    path.unlink(missing_ok=True)
            lock.release()

    def remove(self, stored: Stored, files: Iterable[Path]) -> None:
        """Remove some of its files, and with the last one all trace of it. Raises `InvalidInput`
        where that is not allowed."""
        try:
            # The description first: without it, the rest is no entry.
            for path in sorted(files, key=lambda path: path.suffix != ".json"):
                path.unlink(missing_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise InvalidInput(f"cannot remove {stored} from {self.root}: {reason}") from error
        if not any(path.exists() for path in stored.files):
            place = self.root / stored.kind / stored.name
            with suppress(OSError):
                place.with_suffix(".lock").unlink(missing_ok=True)
            if place.is_dir():
                with suppress(OSError):
                    # A file that is being written right now keeps it.
                    place.rmdir()


def listing(cache: Cache, kind: str | None = None) -> str:
    """What there is, and how large: of all kinds in sum, or of one thing by thing. Raises
    `InvalidInput` for an unknown kind."""
    if kind is None:
        headers = ["kind", "entries", "size", ""]
        found = {name: _present(cache, name) for name in KINDS}
        rows = [
            (name, str(len(found[name])), decimal(_total(found[name])), words)
            for name, words in KINDS.items()
        ]
        total = sum(map(_total, found.values()))
    else:
        check_kind(kind)
        headers = ["name", "size", "last used", ""]
        present = _present(cache, kind)
        rows = [
            (stored.name, decimal(stored.size), _moment(stored.used), _about(cache, stored))
            for stored in present
        ]
        total = _total(present)
    table = tabulate(rows, headers, "plain", disable_numparse=True)
    return f"{table}\n\n{decimal(total)} in {cache.root}"


def verify(cache: Cache) -> tuple[list[str], bool]:
    """Read everything. Returns lines that name what is damaged and count what is whole, and whether
    nothing is damaged."""
    lines: list[str] = []
    rows = []
    for kind in KINDS:
        whole = busy = 0
        for stored in _present(cache, kind):
            with cache.claim(stored) as free:
                if not free:
                    busy += 1
                elif cache.damaged_files(stored):
                    lines.append(f"damaged or half written: {stored}")
                else:
                    whole += 1
        rows.append((kind, whole, busy))
    damaged = len(lines)
    lines.append(tabulate(rows, ["kind", "whole", "in use, not read"], "plain"))
    lines.append(f"{damaged} damaged in {cache.root}")
    return lines, not damaged


def sweep(
    cache: Cache, kinds: Sequence[str] = (), max_size: str | None = None, dry_run: bool = False
) -> list[str]:
    """Remove what no run can use, and then, while the rest is larger than `max_size`, what was not
    used for the longest time. Returns lines that say what was, or would be, removed.

    kinds: what to look at and to measure; unless given, all but artefacts, which no run makes anew

    Safe beside running cells: what another process holds stays. Raises `InvalidInput` for an
    unknown kind, a bad size, and where nothing may be removed.
    """
    for kind in kinds:
        check_kind(kind)
    limit = None if max_size is None else parse_size(max_size)
    chosen = [kind for kind in KINDS if (kind in kinds if kinds else kind != "artefacts")]
    verb = "would remove" if dry_run else "removed"
    lines: list[str] = []
    gone: dict[Path, int] = {}

    def remove(stored: Stored, files: Sequence[Path], why: str) -> None:
        sizes = {path: _status(path)[0] for path in files}
        if not dry_run:
            cache.remove(stored, files)
        gone.update(sizes)
        lines.append(f"{verb} {stored}, {why}: {decimal(sum(sizes.values()))}")

    everything = [stored for kind in chosen for stored in cache.contents(kind)]
    for stored in everything:
        with cache.claim(stored) as free:
            if not free or stored.busy:
                continue
            if stored.kind == "checkpoints" and stored.age > STALE:
                remove(stored, (*stored.files, *stored.leftovers), "unused for a week")
            elif damaged := cache.damaged_files(stored):
                remove(stored, (*damaged, *stored.leftovers), "damaged or half written")
            elif stored.leftovers:
                remove(stored, stored.leftovers, "left over")
    left = _total(everything) - sum(gone.values())
    for stored in sorted(everything, key=lambda stored: stored.used):
        if limit is None or left <= limit:
            break
        files = [path for path in stored.files if path not in gone]
        with cache.claim(stored) as free:
            if files and free and not stored.busy:
                remove(stored, files, "least recently used")
                left -= sum(gone[path] for path in files)
    lines.append(f"{verb} {decimal(sum(gone.values()))}, {decimal(left)} are left in {cache.root}")
    if limit is not None and left > limit:
        lines.append(f"that is more than {max_size}: the rest is in use")
    return lines


def check_kind(kind: str) -> None:
    """Raises `InvalidInput` with the nearest kind."""
    check(kind in KINDS, f"unknown kind {kind!r}{spec.did_you_mean(kind, KINDS)}")


def parse_size(text: str) -> int:
    """Bytes from 500M, 10G, 1.5T or a plain number, in powers of 1000. Raises `InvalidInput`."""
    found = re.fullmatch(r"(\d{1,18}(?:\.\d{1,18})?) ?([KMGT]?)B?", text.strip().upper())
    if found is None:
        raise InvalidInput(f"a size is written 500M, 10G, 1.5T or in bytes, got {text!r}")
    return round(float(found[1]) * UNITS[found[2]])


def _described(folder: Path, digest: str) -> dict[str, Any]:
    """The JSON of an entry. Raises one of `DAMAGE` unless it is whole and its own."""
    path = folder / f"{digest}.json"
    if not path.is_file():
        # To open a pipe is to wait for somebody who writes to it.
        raise ValueError(f"{path.name} is no file")
    document: dict[str, Any] = json.loads(path.read_bytes())
    stated = document.pop("digest")
    if (digest_of(document), digest_of(document["key"])) != (stated, digest):
        raise ValueError(f"{digest}.json is not what was written")
    return document


def _load(folder: Path, digest: str) -> Entry:
    """An entry. Raises one of `DAMAGE` unless it is whole."""
    document, payload = _described(folder, digest), folder / f"{digest}.safetensors"
    if sha256_of(payload) != document["sha256"]:
        raise ValueError(f"{payload.name} is not what was written")
    return Entry(safetensors.torch.load_file(payload), document["meta"], fresh=False)


def _fits_its_name(path: Path, kind: str) -> bool:
    """Whether a file that names its hash has it; one that is gone by now does no harm."""
    try:
        return path.stem.rpartition("-")[2] == sha256_of(path)[: HASHED[kind]]
    except OSError:
        return not path.exists()


def _stored(kind: str, name: str, paths: Sequence[Path]) -> Stored:
    files = tuple(path for path in paths if path.suffix in (".json", ".safetensors"))
    leftovers = tuple(
        path
        for path in paths
        if (path.suffix == ".tmp" and (kind not in HASHED or time.time() - _status(path)[1] > BUSY))
        or (path.suffix == ".lock" and not files)
    )
    size = sum(_status(path)[0] for path in (*files, *leftovers))
    # A hit touches the description alone.
    told = [path for path in files if path.suffix == ".json"] or files or paths
    return Stored(kind, name, files, leftovers, size, max(_status(path)[1] for path in told))


def _status(path: Path) -> tuple[int, float]:
    """Bytes, and when last changed; nothing for a file that is gone by now."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0.0
    return found.st_size, found.st_mtime


def _present(cache: Cache, kind: str) -> list[Stored]:
    return [stored for stored in cache.contents(kind) if stored.files]


def _total(found: Iterable[Stored]) -> int:
    return sum(stored.size for stored in found)


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def _about(cache: Cache, stored: Stored) -> str:
    """What it is, in a few words."""
    if stored.kind in HASHED:
        cell = stored.name.partition("-")[0]
        return f"of cell {cell}" if stored.kind == "artefacts" else "of an unfinished cell"
    try:
        key = cache.key_of(stored)
    except DAMAGE:
        return "damaged or half written"
    said: dict[str, Callable[[Any], str]] = {
        "name": str,
        "data": lambda sha256: f"data {sha256[:8]}",
        "attack": lambda text: _label(attacks, text),
        "model": lambda text: _label(models, text),
        "seed": lambda seed: f"seed {seed}",
    }
    return " · ".join(say(key[part]) for part, say in said.items() if part in key)


def _label(registry: Registry[Any], text: str) -> str:
    """A spec in short, or as it is where its plugin is not there."""
    try:
        return registry.label(text)
    except InvalidInput:
        return text

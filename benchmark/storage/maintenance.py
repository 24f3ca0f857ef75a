"""The cache in order: what lies in it, whether it is whole, and removing what no run needs.

Two more kinds lie beside the entries of the store, `artefacts` and `checkpoints`: files that have
the hash of their bytes in their names, and no lock.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import Timeout
from rich.filesize import decimal
from tabulate import tabulate

from bdbench.attacks.registry import attacks
from bdbench.models.plugins import spec
from bdbench.models.plugins.errors import InvalidInput, require
from bdbench.models.plugins.registry import Registry
from bdbench.models.registry import models
from bdbench.storage import mark
from bdbench.storage.cache import DAMAGE, Cache, sha256_of

KINDS = {
    "datasets": "decoded data sets",
    "poisoned": "poisoned sets and prepared attacks",
    "undefended": "networks trained with no defense",
    "artefacts": "what figures are drawn from",
    "checkpoints": "unfinished cells",
}
HASHED = {"artefacts": 16, "checkpoints": 32}
"""The kinds that are no entries, and how many digits of its hash end the name of a file."""
STALE = 7 * 24 * 3600.0
"""Seconds after which checkpoints that nobody went on from are garbage."""
BUSY = 3600.0
"""Seconds for which files that no lock guards are taken to be in use."""
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(frozen=True)
class Stored:
    """What lies in a cache under one name: an entry, an artefact, a folder of checkpoints.

    files: whole or not
    leftovers: temporary files, whose writers may be dead, and the lock of an entry without files
    size: bytes of all
    used: when last, seconds since 1970
    """

    cache: Cache
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

    def key(self) -> dict[str, Any]:
        """What an entry depends on. Raises one of `DAMAGE` where that cannot be read."""
        return self.cache.key_of(self.kind, self.name)

    def damaged_files(self) -> tuple[Path, ...]:
        """Those that no run would use; of an entry either all or none."""
        if self.kind in HASHED:
            return tuple(path for path in self.files if not _fits_its_name(path, self.kind))
        try:
            self.cache.load(self.kind, self.name)
        except DAMAGE:
            return tuple(path for path in self.files if path.exists())
        return ()

    @contextmanager
    def claim(self) -> Iterator[bool]:
        """Whether no other process is at work on an entry, nor will be in the block. Other kinds
        have no lock, and are free."""
        lock = self.cache.lock(self.kind, self.name)
        path = Path(lock.lock_file)
        existed = path.exists()
        if self.kind not in HASHED:
            try:
                lock.acquire(blocking=False)
            except Timeout:
                yield False
                return
            except (OSError, NotImplementedError):
                # Nobody has a lock here, where none can be written.
                pass
        try:
            yield True
        finally:
            if not existed:
                with suppress(OSError):
                    path.unlink(missing_ok=True)
            lock.release()

    def remove(self, files: Iterable[Path]) -> None:
        """Remove some of its files, and with the last one all trace of it. Raises `InvalidInput`
        where that is not allowed."""
        try:
            # The description first: without it, the rest is no entry.
            for path in sorted(files, key=lambda path: path.suffix != ".json"):
                path.unlink(missing_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise InvalidInput(f"cannot remove {self} from {self.cache.root}: {reason}") from error
        if not any(path.exists() for path in self.files):
            place = self.cache.root / self.kind / self.name
            with suppress(OSError):
                place.with_suffix(".lock").unlink(missing_ok=True)
            if place.is_dir():
                with suppress(OSError):
                    # A file that is being written right now keeps it.
                    place.rmdir()


def contents(cache: Cache, kind: str) -> list[Stored]:
    """All there is of a kind, last used first, with what is damaged or half written. What bdbench
    did not make is no part of it."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for name, path in mark.own_files(cache.root, kind):
        groups[name].append(path)
    found = [_stored(cache, kind, name, paths) for name, paths in groups.items()]
    return sorted(found, key=lambda stored: (-stored.used, stored.name))


def listing(cache: Cache, kind: str | None = None) -> str:
    """What there is, and how large: of all kinds in sum, or of one thing by thing. Raises
    `InvalidInput` for an unknown kind, and a folder that is somebody else's."""
    mark.check_ours(cache.root)
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
            (stored.name, decimal(stored.size), _moment(stored.used), _about(stored))
            for stored in present
        ]
        total = _total(present)
    table = tabulate(rows, headers, "plain", disable_numparse=True)
    return f"{table}\n\n{decimal(total)} in {cache.root}"


def verify(cache: Cache) -> tuple[list[str], bool]:
    """Read everything. Returns lines that name what is damaged and count what is whole, and whether
    nothing is damaged. Raises `InvalidInput` for a folder that is somebody else's."""
    mark.check_ours(cache.root)
    lines: list[str] = []
    rows = []
    for kind in KINDS:
        whole = busy = 0
        for stored in _present(cache, kind):
            with stored.claim() as free:
                if not free:
                    busy += 1
                elif stored.damaged_files():
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
    unknown kind, a bad size, a folder that is somebody else's, and where nothing may be removed.
    """
    mark.check_ours(cache.root)
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
            stored.remove(files)
        gone.update(sizes)
        lines.append(f"{verb} {stored}, {why}: {decimal(sum(sizes.values()))}")

    everything = [stored for kind in chosen for stored in contents(cache, kind)]
    for stored in everything:
        with stored.claim() as free:
            if not free or stored.busy:
                continue
            if stored.kind == "checkpoints" and stored.age > STALE:
                remove(stored, (*stored.files, *stored.leftovers), "unused for a week")
            elif damaged := stored.damaged_files():
                remove(stored, (*damaged, *stored.leftovers), "damaged or half written")
            elif stored.leftovers:
                remove(stored, stored.leftovers, "left over")
    left = _total(everything) - sum(gone.values())
    for stored in sorted(everything, key=lambda stored: stored.used):
        if limit is None or left <= limit:
            break
        files = [path for path in stored.files if path not in gone]
        with stored.claim() as free:
            if files and free and not stored.busy:
                remove(stored, files, "least recently used")
                left -= sum(gone[path] for path in files)
    lines.append(f"{verb} {decimal(sum(gone.values()))}, {decimal(left)} are left in {cache.root}")
    if limit is not None and left > limit:
        lines.append(f"that is more than {max_size}: the rest is in use")
    return lines


def check_kind(kind: str) -> None:
    """Raises `InvalidInput` with the nearest kind."""
    require(kind in KINDS, f"unknown kind {kind!r}{spec.did_you_mean(kind, KINDS)}")


def parse_size(text: str) -> int:
    """Bytes from 500M, 10G, 1.5T or a plain number, in powers of 1000. Raises `InvalidInput`."""
    found = re.fullmatch(r"(\d{1,18}(?:\.\d{1,18})?) ?([KMGT]?)B?", text.strip().upper())
    if found is None:
        raise InvalidInput(f"a size is written 500M, 10G, 1.5T or in bytes, got {text!r}")
    return round(float(found[1]) * UNITS[found[2]])


def _fits_its_name(path: Path, kind: str) -> bool:
    """Whether a file that names its hash has it; one that is gone by now does no harm."""
    try:
        return path.stem.rpartition("-")[2] == sha256_of(path)[: HASHED[kind]]
    except OSError:
        return not path.exists()


def _stored(cache: Cache, kind: str, name: str, paths: Sequence[Path]) -> Stored:
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
    used = max(_status(path)[1] for path in told)
    return Stored(cache, kind, name, files, leftovers, size, used)


def _status(path: Path) -> tuple[int, float]:
    """Bytes, and when last changed; nothing for a file that is gone by now."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0.0
    return found.st_size, found.st_mtime


def _present(cache: Cache, kind: str) -> list[Stored]:
    return [stored for stored in contents(cache, kind) if stored.files]


def _total(found: Iterable[Stored]) -> int:
    return sum(stored.size for stored in found)


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def _about(stored: Stored) -> str:
    """What it is, in a few words."""
    if stored.kind in HASHED:
        cell = stored.name.partition("-")[0]
        return f"of cell {cell}" if stored.kind == "artefacts" else "of an unfinished cell"
    try:
        key = stored.key()
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

"""The cache as its owner sees it: what it holds, and clearing it."""

from __future__ import annotations

import errno
import math
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
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
from bdbench.storage.cache import DAMAGE, Cache
from bdbench.storage.locks import alone_in

KINDS = {
    "datasets": "decoded data sets",
    "poisoned": "poisoned sets and prepared attacks",
    "undefended": "networks trained with no defense",
    "embeddings": "data of figures",
    "checkpoints": "unfinished cells",
}
REBUILT = tuple(kind for kind in KINDS if kind != "embeddings")
"""What a run rebuilds when it needs it. Embeddings come back only if their cell is run again."""
RECENT = 3600.0
"""Seconds. Where files cannot be locked, what was written since may be of a running cell."""
NO_LOCK = (errno.EISDIR, errno.ELOOP)
"""Errors of something else in the place of a lock, which nobody can hold."""
LOCKLESS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of a file system that has no locks."""
DAY = 24 * 3600.0


@dataclass(frozen=True)
class Stored:
    """The files of an entry of the cache, or of a folder of checkpoints, with lock and temporary
    files."""

    cache: Cache
    kind: str
    name: str
    paths: tuple[Path, ...]

    @property
    def is_entry(self) -> bool:
        """Whether there is more than the lock of what is being made, or was looked for."""
        return any(path.suffix != ".lock" for path in self.paths)

    @cached_property
    def size(self) -> int:
        """Bytes."""
        return sum(status.st_size for status in _statuses(self.paths))

    @cached_property
    def used(self) -> float:
        """When it was last used, seconds since 1970. A read touches the description alone."""
        told = [path for path in self.paths if path.suffix == ".json"] or self.paths
        return max((status.st_mtime for status in _statuses(told)), default=0.0)

    def unused_for(self, seconds: float) -> bool:
        return max(0.0, time.time() - self.used) >= seconds

    def key(self) -> dict[str, Any]:
        """What an entry depends on. Raises one of `DAMAGE` where it cannot be read."""
        return self.cache.key_of(self.kind, self.name)

    def meta(self) -> dict[str, Any]:
        """What is stored beside it. Raises one of `DAMAGE` where it cannot be read."""
        return self.cache.meta_of(self.kind, self.name)

    def remove(self) -> bool:
        """Remove it unless it is in use. Returns whether it was removed. Raises OSError."""
        if self.kind == "checkpoints":
            with alone_in(self.cache.root / self.kind / self.name) as alone:
                return alone and self.unused_for(RECENT) and self._unlink(*self.paths)
        lock = self.cache.lock(self.kind, self.name)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return False
        except PermissionError:
            return False  # of another user, who may be using it
        except (OSError, NotImplementedError) as error:
            number = error.errno if isinstance(error, OSError) else errno.ENOSYS
            if number in LOCKLESS:
                if not self.unused_for(RECENT):
                    return False
            elif number not in NO_LOCK:
                raise
        try:
            return self._unlink(*self.paths, Path(lock.lock_file))
        finally:
            lock.release()

    def _unlink(self, *paths: Path) -> bool:
        # The description goes first: without it, the rest is not an entry.
        for path in sorted(paths, key=lambda path: path.suffix != ".json"):
            if mark.own_name(path, self.kind) is not None:
                path.unlink(missing_ok=True)
        with suppress(OSError):  # only checkpoints have a folder, which may hold other files
            (self.cache.root / self.kind / self.name).rmdir()
        return True


def contents(cache: Cache, kind: str) -> list[Stored]:
    """Everything of a kind that bdbench stored, also what is corrupt or a lock alone, last used
    first."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for name, path in mark.own_files(cache.root, kind):
        groups[name].append(path)
    found = [Stored(cache, kind, name, tuple(paths)) for name, paths in groups.items()]
    return sorted(found, key=lambda stored: (-stored.used, stored.name))


def listing(cache: Cache, kind: str | None = None) -> str:
    """Number and size of the entries of all kinds, or a line for each entry of one kind. Raises
    `InvalidInput` for an unknown kind, and for a folder that is not a cache of bdbench."""
    mark.check_ours(cache.root)
    found = {
        each: [stored for stored in contents(cache, each) if stored.is_entry]
        for each in _chosen(kind, KINDS)
    }
    sizes = {each: sum(stored.size for stored in entries) for each, entries in found.items()}
    if kind is None:
        headers = ["kind", "entries", "size", ""]
        rows = [(each, str(len(found[each])), decimal(sizes[each]), KINDS[each]) for each in found]
    else:
        headers = ["name", "size", "last used", ""]
        rows = [(s.name, decimal(s.size), _moment(s.used), _about(s)) for s in found[kind]]
    table = tabulate(rows, headers, "plain", disable_numparse=True)
    return f"{table}\n\n{decimal(sum(sizes.values()))} in {cache.root}"


def clear(cache: Cache, kind: str | None = None, older_than: float = 0.0) -> list[str]:
    """Remove what is not in use, and return lines that say what was removed.

    kind: only this kind; None for `REBUILT`
    older_than: days; only what was not used for that long

    Raises `InvalidInput` for an unknown kind, for days below 0, and for a folder that is not a
    cache of bdbench; OSError where a file cannot be removed.
    """
    chosen = _chosen(kind, REBUILT)
    require(0 <= older_than < math.inf, f"--older-than must be 0 days or more, got {older_than:g}")
    mark.check_ours(cache.root)
    if mark.listed(cache.root):
        mark.claim(cache.root)
    old = [s for each in chosen for s in contents(cache, each) if s.unused_for(older_than * DAY)]
    removed, freed, in_use = Counter[str](), 0, 0
    for stored in old:
        size = stored.size
        if not stored.remove():
            in_use += 1
        elif stored.is_entry:
            removed[stored.kind] += 1
            freed += size
    lines = [f"removed {count} of {each}" for each, count in removed.items()]
    lines += [f"kept {in_use} in use"] * bool(in_use)
    left = sum(stored.size for each in KINDS for stored in contents(cache, each))
    return [*lines, f"{decimal(freed)} removed, {decimal(left)} left in {cache.root}"]


def _chosen(kind: str | None, default: Iterable[str]) -> tuple[str, ...]:
    """Raises `InvalidInput`, with the nearest kind, for an unknown one."""
    if kind is None:
        return tuple(default)
    require(kind in KINDS, f"unknown kind {kind!r}{spec.did_you_mean(kind, KINDS)}")
    return (kind,)


def _statuses(paths: Iterable[Path]) -> Iterator[os.stat_result]:
    """Without files that have just been removed."""
    for path in paths:
        with suppress(OSError):
            yield path.stat()


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def _about(stored: Stored) -> str:
    """A few words on an entry."""
    if stored.kind == "checkpoints":
        return "of an unfinished cell"
    try:
        key = stored.key()
    except DAMAGE:
        return "corrupt or incomplete"
    said: dict[str, Callable[[Any], str]] = {
        "cell": lambda cell: f"of cell {cell}",
        "name": str,
        "data": lambda sha256: f"data {sha256[:8]}",
        "attack": lambda text: _label(attacks, text),
        "model": lambda text: _label(models, text),
        "seed": lambda seed: f"seed {seed}",
    }
    return " · ".join(say(key[part]) for part, say in said.items() if part in key)


def _label(registry: Registry[Any], text: str) -> str:
    """The label of a spec; the spec itself where its plugin is not installed."""
    try:
        return registry.label(text)
    except InvalidInput:
        return text

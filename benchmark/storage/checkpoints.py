"""Checkpoints as files: a folder for each piece of work, removed when the work is done.

The last checkpoint of a loop is `<loop>-<rounds>-<hash>.safetensors`: numbers and tensors in one
file whose name holds the hash of its bytes. A file that does not match its hash is ignored. The
name of the folder is a hash of everything that decides the numbers, so a checkpoint of other code
is never resumed.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from bdbench.models.plugins.notices import notify
from bdbench.models.training.resume import Checkpoint, CheckpointStore, State, snapshot
from bdbench.storage import mark
from bdbench.storage.atomic import Unusable, remove_abandoned, write_atomically
from bdbench.storage.cache import DAMAGE
from bdbench.storage.locks import alone_in

SHARE = 0.02
"""Largest share of the training time that checkpoints may take."""
LONGEST = 2**26
"""Bytes of a header at most; a file that states more is corrupt."""
PATIENCE = 1.0
"""Seconds before the first checkpoint, whose cost is not known yet."""


class Checkpoints(CheckpointStore):
    """Stores the state of loops in files, as often as `SHARE` allows.

    folder: for this piece of work alone
    note: returns JSON values to store beside a loop's state, such as counts and seconds
    recall: called with the note of a loop that is restored
    patience: see `PATIENCE`; below 0, every round is stored
    """

    def __init__(
        self,
        folder: Path,
        note: Callable[[], dict[str, Any]],
        recall: Callable[[dict[str, Any]], None],
        patience: float = PATIENCE,
    ) -> None:
        self.folder, self.note, self.recall, self.patience = folder, note, recall, patience
        self._next = time.monotonic() + patience
        self._found = dict(self._whole())
        self._writing = threading.Lock()

    def find(self, loop: str) -> Checkpoint | None:
        path = self._found.get(loop)
        if path is None:
            return None
        try:
            document, state = decode(path.read_bytes())
            kept = Checkpoint(document["rounds"], document["finished"], state)
        except DAMAGE:
            return None
        self.recall(document["note"])
        return kept

    def offer(self, loop: str, rounds: int, finished: bool, state: State) -> None:
        # One branch writes at a time, as all of them share the time; the others do not wait.
        if time.monotonic() < self._next or not self._writing.acquire(blocking=self.patience < 0):
            return
        try:
            self._keep(loop, rounds, finished, state)
        finally:
            self._writing.release()

    def _keep(self, loop: str, rounds: int, finished: bool, state: State) -> None:
        # The note waits for the device, whose work is no cost of the checkpoint.
        note = {"rounds": rounds, "finished": finished, "note": self.note()}
        started = time.monotonic()
        content = encode(note, snapshot(state))
        path = self.folder / f"{loop}-{rounds}-{hash_of(content)}.safetensors"
        try:
            if self.folder.is_symlink():
                raise Unusable(f"{self.folder} is a link")
            write_atomically(path, content)
        except Unusable as error:
            notify(f"continuing without checkpoints: {error}", stacklevel=2)
            self._next = math.inf
            return
        old, self._found[loop] = self._found.get(loop), path
        if old is not None and old != path:
            _remove(old)
        if self.patience >= 0:
            ended = time.monotonic()
            self._next = ended + (ended - started) / SHARE

    def _whole(self) -> list[tuple[str, Path]]:
        """Loops and their files, the newest of a loop last. Corrupt files are removed."""
        found = []
        remove_abandoned(self.folder)
        for path in _own(self.folder):
            loop, rounds, digest = path.stem.split("-")
            if _digest(path) == digest:
                found.append((loop, int(rounds), path))
            else:
                _remove(path)
        return [(loop, path) for loop, _, path in sorted(found)]


def discard(folder: Path) -> None:
    """Remove the checkpoints of finished work, and no other file of the folder, unless another
    process is doing the same work."""
    if not folder.is_dir():
        return
    with alone_in(folder) as alone:
        if alone:
            remove_abandoned(folder)
            for path in _own(folder):
                _remove(path)


def _own(folder: Path) -> Iterator[Path]:
    """The checkpoints in a folder; none if the folder is a link."""
    if folder.is_symlink():
        return
    with suppress(Unusable):
        for path in mark.listed(folder):
            if path.suffix == ".safetensors" and mark.own_name(path, "checkpoints") is not None:
                yield path


def _digest(path: Path) -> str | None:
    """The hash of a file; None where it cannot be read."""
    try:
        return hash_of(path.read_bytes())
    except OSError:
        return None


def _remove(path: Path) -> None:
    """Remove a file if possible; `bdbench cache clear` removes what is left."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


def notes(root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The loop and the note of each checkpoint in a cache. Only headers are read, and nothing is
    changed."""
    for _, path in mark.own_files(root, "checkpoints"):
        with suppress(*DAMAGE), path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            document = _document(file.read(min(length, LONGEST)))
            yield path.stem.partition("-")[0], document["note"]


def hash_of(content: bytes) -> str:
    """32 hex digits."""
    return hashlib.sha256(content).hexdigest()[:32]


def encode(note: Mapping[str, Any], state: Mapping[str, Any]) -> bytes:
    """JSON values and a state, as `snapshot` returns it, as the content of one file."""
    tensors: dict[str, Tensor] = {}
    document = {**note, "state": _flattened(state, tensors)}
    return safetensors.torch.save(tensors, {"document": json.dumps(document)})


def decode(content: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The inverse of `encode`. Raises one of `DAMAGE` for anything else."""
    tensors = safetensors.torch.load(content)
    length = int.from_bytes(content[:8], "little")
    document = _document(content[8 : 8 + length])
    state: dict[str, Any] = _restored(document.pop("state"), tensors)
    return document, state


def _document(head: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.loads(head)["__metadata__"]["document"])
    return found


def _flattened(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The value as JSON. Tensors are added to `tensors`, and their names stand for them."""
    if isinstance(value, Tensor):
        name, last = str(len(tensors)), torch.channels_last
        # safetensors loses the memory layout, and later convolutions would be slower.
        wide = value.dim() == 4 and value.is_contiguous(memory_format=last)
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name, "last": wide and not value.is_contiguous()}
    if isinstance(value, Mapping):
        # Pairs, because the keys may be numbers.
        return {"dict": [[key, _flattened(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_flattened(item, tensors) for item in value]}
    return value


def _restored(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `_flattened`, with lists in place of tuples."""
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        found = tensors[value["tensor"]]
        return found.contiguous(memory_format=torch.channels_last) if value["last"] else found
    if "dict" in value:
        return {key: _restored(item, tensors) for key, item in value["dict"]}
    return [_restored(item, tensors) for item in value["list"]]

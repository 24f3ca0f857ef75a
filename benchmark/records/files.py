"""Records as JSON files, from which every table and figure is made.

A file has one more field than its record, `checksum`: the SHA-256 of all others. A file without it,
as older versions wrote them, is read too.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any, NoReturn

from bdbench.models.plugins import spec
from bdbench.models.plugins.errors import InvalidInput, require
from bdbench.records.record import OtherSchema, Record, decode, encode
from bdbench.storage.atomic import Unusable, check_writable, write_atomically
from bdbench.storage.locks import locked
from bdbench.storage.mark import listed

LARGEST_FILE = 2**24
LARGEST_NUMBER = 1e100
DEEPEST = 50
NETWORKS = "networks"
"""The folder of saved networks, beside that of the records."""
PUBLISHED = "PUBLISHED"
"""A file of this name marks a folder that no run writes to unless `--results` names it."""


def write(folder: Path, record: Record) -> Path:
    """Write `<folder>/records/<key>.json` and return its path; a record of that key is replaced.

    Raises `InvalidInput` for an unwritable folder, ValueError for a number that is not finite.
    """
    path = path_of(folder, record.key)
    write_atomically(path, content(record))
    return path


def content(record: Record) -> bytes:
    """The file of a record. Raises `InvalidInput` for one that could not be read again, ValueError
    for a number that is not finite."""
    document = encode(record)
    document["checksum"] = _checksum(document)
    _bound(document)
    text = json.dumps(document, sort_keys=True, indent=1, allow_nan=False)
    whole = f"{text}\n".encode()
    require(
        len(whole) <= LARGEST_FILE,
        f"the record of cell {record.key} has {len(whole):,} bytes, more than {LARGEST_FILE:,}: "
        "publish less in the journal",
    )
    return whole


def check_folder(folder: Path, save: bool) -> None:
    """Raises `Unusable` unless tables, records and, to save them, networks can be written there,
    and cells can be claimed."""
    for place in (folder, folder / "records", *([folder / NETWORKS] if save else [])):
        check_writable(place)
    try:
        with locked(folder / "records" / ".folder.lock"):
            pass
    except Unusable as error:
        raise Unusable(f"{error}; name a folder on another file system with --results") from None


def path_of(folder: Path, key: str) -> Path:
    """The path of the record of a cell, whether it exists or not."""
    return folder / "records" / f"{key}.json"


def network_of(folder: Path, key: str) -> Path:
    """The path of the saved network of a cell, whether it exists or not."""
    return folder / NETWORKS / f"{key}.safetensors"


def find(key: str, results: Path | None) -> Path:
    """The record whose key begins with `key`, in a folder or, without one, in those below
    `results`. Raises `InvalidInput` for none or several, also if folders have the same cell."""
    folders = [results] if results else listed(Path("results"))
    every = [path for folder in folders for path in _paths(folder)]
    paths = [path for path in every if key and path.stem.startswith(key)]
    known = [folder for folder in folders if results or os.path.isdir(folder / "records")]
    where = ", ".join(map(str, known)) or "results"
    advice = f"{results / 'records'} shows them" if results else "name its folder with --results"
    require(bool(paths), f"no record {key!r} in {where}; {advice}")
    names = sorted({path.stem for path in paths})
    require(len(names) == 1, f"{key!r} matches several records: {', '.join(names)}")
    homes = ", ".join(str(path.parent.parent) for path in paths)
    require(len(paths) == 1, f"cell {names[0]} has records in {homes}; choose one with --results")
    return paths[0]


def read(path: Path) -> Record:
    """The record in `<key>.json`. Raises `InvalidInput` for a missing or damaged file or one whose
    name is not its key, `OtherSchema` for one of another version, `Unusable` for one that is there
    and cannot be read."""
    try:
        status = path.stat()
        # Opening a FIFO would block; opening a folder names it in an OSError.
        require(S_ISREG(status.st_mode) or S_ISDIR(status.st_mode), "it is not a file")
        require(status.st_size <= LARGEST_FILE, f"it has more than {LARGEST_FILE:,} bytes")
        document = json.loads(
            path.read_bytes(), parse_constant=_refuse, object_pairs_hook=_without_duplicates
        )
        _bound(document)
        stated = document.pop("checksum", None) if isinstance(document, dict) else None
        record = decode(document)
        fits = stated is None or stated == _checksum(document)
        require(fits, "its content does not match its checksum")
        require(record.key == path.stem, f"it is the record of cell {record.key}")
        for text in (str(part) for _, part in (*record.cell, *record.labels)):
            require(text.isprintable() and len(text) <= spec.LONGEST, f"{text!r} is not a spec")
        return record
    except OtherSchema as error:
        raise OtherSchema(f"{path}: {error}; the file was left untouched") from None
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        kind = InvalidInput if missing else Unusable
        raise kind(f"cannot read record {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"damaged record {path}: {error}") from None


def read_all(folder: Path) -> tuple[list[Record], list[str]]:
    """The records in `<folder>/records/*.json`, sorted by name, and a line for each damaged file,
    which is left out.

    Raises `OtherSchema` for a record of another version, `InvalidInput` for a folder that cannot be
    opened.
    """
    whole, damaged = [], []
    for path in _paths(folder):
        try:
            whole.append(read(path))
        except OtherSchema:
            raise
        except InvalidInput as error:
            damaged.append(str(error))
    return whole, damaged


def _paths(folder: Path) -> list[Path]:
    """The files of records, by name. Raises `Unusable` where they cannot be listed: a pattern of
    pathlib would match nothing there."""
    shown = (path for path in listed(folder / "records") if not path.name.startswith("."))
    return [path for path in shown if path.suffix == ".json"]


def _checksum(document: dict[str, Any]) -> str:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _refuse(constant: str) -> NoReturn:
    raise InvalidInput(f"{constant} is not a JSON number")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    require(len(found) == len(pairs), "a field occurs twice")
    return found


def _bound(value: Any, depth: int = 0) -> None:
    """Reject values that are too large or too deeply nested."""
    if isinstance(value, (dict, list)):
        require(depth < DEEPEST, f"it is nested more than {DEEPEST} deep")
        for part in value.values() if isinstance(value, dict) else value:
            _bound(part, depth + 1)
    elif isinstance(value, (int, float)) and abs(value) > LARGEST_NUMBER:
        raise InvalidInput(f"the number {value} is too large")

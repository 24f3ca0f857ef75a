"""The folder of a report. A manifest lists its files, and no other file in it is touched."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bdbench.models.plugins.errors import require
from bdbench.storage.atomic import write_atomically

MANIFEST = "manifest.json"
OWN = re.compile(
    r"(attacks|cells|defenses|pictures|tables)/[\w-]+\.\w+|(index|compare)\.html|style\.css|report\.js"
)
"""File names that a report uses. Other names in a manifest are ignored."""


def replace_files(folder: Path, files: Mapping[str, Callable[[], bytes]]) -> None:
    """Write these files of a report, and remove the files of an earlier report.

    The manifest is written first, so that the next report knows the files of an interrupted one.
    """
    require(
        folder.resolve().name != "records",
        f"{folder} is where records lie, and a report there would be read as damaged ones; "
        "choose another --out",
    )
    before = _manifest(folder)
    for name in [*files, *([] if before else [MANIFEST])]:
        free = name in before or not (folder / name).exists()
        require(
            free,
            f"refusing to overwrite {folder / name}: it was not written by `bdbench report`; "
            "choose another --out",
        )
    _write_manifest(folder, before | files.keys())

    def write(name: str, content: bytes) -> None:
        path = folder / name
        if not path.is_file() or path.read_bytes() != content:
            write_atomically(path, content)

    # Threads wait for the disk. Pages are made in this thread: in Python 3.11, `ast` is not
    # thread-safe.
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(write, files, (make() for make in files.values())):
            pass
    for name in before - files.keys():
        (folder / name).unlink(missing_ok=True)
    _write_manifest(folder, files)


def _manifest(folder: Path) -> set[str]:
    """The files of the report in a folder; empty if there is no manifest of a report."""
    try:
        names = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return set()
    names = names if isinstance(names, list) else []
    return {name for name in names if isinstance(name, str) and OWN.fullmatch(name)}


def _write_manifest(folder: Path, names: Iterable[str]) -> None:
    write_atomically(folder / MANIFEST, f"{json.dumps(sorted(names), indent=0)}\n".encode())

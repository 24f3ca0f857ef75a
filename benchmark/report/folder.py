"""The folder of a report, whose files a manifest lists, and nothing else in it is touched."""

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
"""Names that a report gives its files. A manifest that holds any other is not believed there."""


def replace_files(folder: Path, files: Mapping[str, Callable[[], bytes]]) -> None:
    """Make these the files of the report in that folder.

    The manifest comes first, so that the next report knows what one that was broken off has left.
    """
    before = _manifest(folder)
    for name in files:
        free = name in before or not (folder / name).exists()
        require(free, f"{folder / name} is in the way, no report made it; choose another folder")
    _write_manifest(folder, before | files.keys())

    def write(name: str, content: bytes) -> None:
        path = folder / name
        if not path.is_file() or path.read_bytes() != content:
            write_atomically(path, content)

    # Threads wait for the disk. None of them makes a page: `ast` is not safe there in Python 3.11.
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(write, files, (make() for make in files.values())):
            pass
    for name in before - files.keys():
        (folder / name).unlink(missing_ok=True)
    _write_manifest(folder, files)


def _manifest(folder: Path) -> set[str]:
    """The files of the report in that folder; none if the manifest is damaged."""
    try:
        names = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return set()
    names = names if isinstance(names, list) else []
    return {name for name in names if isinstance(name, str) and OWN.fullmatch(name)}


def _write_manifest(folder: Path, names: Iterable[str]) -> None:
    write_atomically(folder / MANIFEST, f"{json.dumps(sorted(names), indent=0)}\n".encode())

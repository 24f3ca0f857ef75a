"""Which folders are caches of bdbench, and which files in them bdbench made. No other file is ever
changed or removed, and links are not followed.

`CACHEDIR.TAG` tells backups that a folder is a cache (bford.info/cachedir). A line of ours in it
says that the cache is that of bdbench.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from bdbench.models.plugins.errors import InvalidInput
from bdbench.storage.atomic import (
    TEMPORARY,
    Unusable,
    remove_abandoned,
    remove_if_abandoned,
    write_atomically,
)
from bdbench.storage.keys import DIGEST

TAG = "CACHEDIR.TAG"
LINE = "# This folder is the cache of bdbench."
CONTENT = f"""Signature: 8a477f597d28d172789f06886806bc55
{LINE}
# About such files: https://bford.info/cachedir/
"""
ENTRY = rf"({DIGEST})\.(?:json|safetensors|lock)"
NAMES = {
    "datasets": ENTRY,
    "poisoned": ENTRY,
    "undefended": ENTRY,
    "embeddings": ENTRY,
    "checkpoints": rf"\d+(?:\.\d+)*-\d+-{DIGEST}\.safetensors",
}
"""Names of the files of each kind. Checkpoints are in folders named by a digest."""
BESIDE = ("artefacts", "data", "lost+found")
"""What else a cache may hold: files of older versions, data sets of the user, and a folder that
some file systems create."""


def claim(root: Path) -> None:
    """Make a folder a cache of bdbench.

    Raises `InvalidInput` for a folder that holds other files, `Unusable` for one that cannot be
    written.
    """
    if not marked(root):
        check_ours(root)
        write_atomically(root / TAG, CONTENT.encode())


def marked(root: Path) -> bool:
    """Whether the folder carries the mark of bdbench."""
    try:
        return LINE in (root / TAG).read_text("utf-8", "replace").splitlines()
    except OSError:
        return False


def check_ours(root: Path) -> None:
    """Raises `InvalidInput` for a folder that is not a cache of bdbench. A folder without the mark
    is one if it is empty, or if a version made it that wrote no mark."""
    if marked(root):
        return
    if (foreign := _foreign(root)) is not None:
        raise InvalidInput(
            f"{root} is not a cache of bdbench: {foreign}; set BDBENCH_CACHE to another folder"
        )


def tidy(root: Path) -> None:
    """Remove the temporary files of dead writers from a cache."""
    remove_abandoned(root, TAG)
    for kind in NAMES:
        for _, path in own_files(root, kind):
            if path.suffix == ".tmp":
                remove_if_abandoned(path)


def own_files(root: Path, kind: str) -> Iterator[tuple[str, Path]]:
    """The regular files of a kind that bdbench made, each with the name of its entry."""
    for folder in _folders(root, kind):
        for path in listed(folder):
            if (name := own_name(path, kind)) is not None:
                yield name, path


def own_name(path: Path, kind: str) -> str | None:
    """The name of the entry that a file belongs to; None for a file that bdbench did not make."""
    temporary = TEMPORARY.fullmatch(path.name)
    found = re.fullmatch(NAMES[kind], temporary["name"] if temporary else path.name)
    if found is None or not _is_regular(path):
        return None
    return path.parent.name if kind == "checkpoints" else found[1]


def listed(folder: Path) -> list[Path]:
    """The content of a folder, by name; empty where the folder is missing. Raises `Unusable` where
    it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise Unusable(f"cannot read {folder}: {error.strerror or error}") from error


def _folders(root: Path, kind: str) -> list[Path]:
    """The folders that hold files of a kind."""
    folder = root / kind
    if folder.is_symlink() or not folder.is_dir():
        return []
    if kind != "checkpoints":
        return [folder]
    below = [path for path in listed(folder) if re.fullmatch(DIGEST, path.name)]
    return [path for path in below if path.is_dir() and not path.is_symlink()]


def _foreign(root: Path) -> str | None:
    """Why a folder without the mark is not a cache of bdbench; None if it is one."""
    if root.exists() and any(root.samefile(place) for place in _homes()):
        return "a home or root folder cannot be one"
    for path in listed(root):
        temporary = TEMPORARY.fullmatch(path.name)
        if path.name in BESIDE or (temporary and temporary["name"] == TAG):
            continue
        if path.name not in NAMES:
            return f"it holds {path.name}"
        inside = listed(path)
        if not path.is_dir() or (inside and not any(_looks_ours(p, path.name) for p in inside)):
            return f"its {path.name} has no file of bdbench"
    return None


def _homes() -> list[Path]:
    """Folders that a mark would exclude from backups."""
    home = Path(os.path.expanduser("~"))
    return [Path("/"), *([home] if home.exists() else [])]


def _looks_ours(path: Path, kind: str) -> bool:
    if kind == "checkpoints":
        return path.is_dir() and re.fullmatch(DIGEST, path.name) is not None
    return own_name(path, kind) is not None


def _is_regular(path: Path) -> bool:
    """Whether it is a file and not a link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False

"""Whose a cache folder is, and which files in it are ours: no other is ever changed or removed.

`CACHEDIR.TAG` tells backups that a folder is a cache (bford.info/cachedir); a line of ours in it
tells that it is the cache of bdbench. Links are not followed.
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
from bdbench.storage.keys import DIGEST, KEY

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
    "artefacts": rf"({KEY}-{KEY})\.safetensors",
    "checkpoints": rf"\d+(?:\.\d+)*-\d+-{DIGEST}\.safetensors",
}
"""What files of each kind are called; those of checkpoints lie in folders named by a digest."""
BESIDE = ("data", "lost+found")
"""What else may lie in a cache: data sets of the user, and what some file systems put there."""


def claim(root: Path) -> None:
    """Make a folder the cache of bdbench, if it is not.

    Raises `InvalidInput` for a folder that is somebody else's, `Unusable` where it cannot be made.
    """
    if not marked(root):
        check_ours(root)
        write_atomically(root / TAG, CONTENT.encode())


def marked(root: Path) -> bool:
    """Whether the folder says that it is the cache of bdbench."""
    try:
        return LINE in (root / TAG).read_text("utf-8", "replace").splitlines()
    except OSError:
        return False


def check_ours(root: Path) -> None:
    """Raise `InvalidInput` for a folder that is somebody else's: one without the mark is ours if it
    is empty, or is what versions left that wrote no mark."""
    if marked(root):
        return
    if (foreign := _foreign(root)) is not None:
        raise InvalidInput(
            f"{root} is no cache of bdbench, {foreign}: name another folder in BDBENCH_CACHE"
        )


def tidy(root: Path) -> None:
    """Remove what dead writers left in a cache of ours."""
    remove_abandoned(root, TAG)
    for kind in NAMES:
        for _, path in own_files(root, kind):
            if path.suffix == ".tmp":
                remove_if_abandoned(path)


def own_files(root: Path, kind: str) -> Iterator[tuple[str, Path]]:
    """The regular files that bdbench made of a kind, with the name under which they are listed."""
    for folder in _folders(root, kind):
        for path in listed(folder):
            if (name := own_name(path, kind)) is not None:
                yield name, path


def own_name(path: Path, kind: str) -> str | None:
    """Under which name a file of a kind is listed; None for what bdbench did not make."""
    temporary = TEMPORARY.fullmatch(path.name)
    found = re.fullmatch(NAMES[kind], temporary["name"] if temporary else path.name)
    if found is None or not _is_regular(path):
        return None
    return path.parent.name if kind == "checkpoints" else found[1]


def listed(folder: Path) -> list[Path]:
    """What lies in a folder, by name; nothing where there is none. Raises `Unusable` where it
    cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise Unusable(f"cannot read {folder}: {error.strerror or error}") from error


def _folders(root: Path, kind: str) -> list[Path]:
    """Those in which files of a kind lie."""
    folder = root / kind
    if folder.is_symlink() or not folder.is_dir():
        return []
    if kind != "checkpoints":
        return [folder]
    below = [path for path in listed(folder) if re.fullmatch(DIGEST, path.name)]
    return [path for path in below if path.is_dir() and not path.is_symlink()]


def _foreign(root: Path) -> str | None:
    """Why a folder without the mark is somebody else's; None if it is not."""
    if root.exists() and any(root.samefile(place) for place in _homes()):
        return "nor may it be one"
    for path in listed(root):
        temporary = TEMPORARY.fullmatch(path.name)
        if path.name in BESIDE or (temporary and temporary["name"] == TAG):
            continue
        if path.name not in NAMES:
            return f"it holds {path.name}"
        inside = listed(path)
        if not path.is_dir() or (inside and not any(_looks_ours(p, path.name) for p in inside)):
            return f"its {path.name} holds nothing of bdbench"
    return None


def _homes() -> list[Path]:
    """Folders of which backups must not take all that is in them for a cache."""
    home = Path(os.path.expanduser("~"))
    return [Path("/"), *([home] if home.exists() else [])]


def _looks_ours(path: Path, kind: str) -> bool:
    if kind == "checkpoints":
        return path.is_dir() and re.fullmatch(DIGEST, path.name) is not None
    return own_name(path, kind) is not None


def _is_regular(path: Path) -> bool:
    """Whether it is a file, and no link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False

"""Archives of public data sets: their addresses, their checksums, and how they are unpacked.

Archives are not trusted. They may hold folders and files below the target folder, but no links,
devices or paths that leave it.
"""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from bdbench.models.plugins.errors import InvalidInput, require
from bdbench.storage.atomic import Unusable

DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    RuntimeError,  # of an encrypted archive
    OSError,
    EOFError,
    ValueError,
    NotImplementedError,
)
"""The exceptions that reading a damaged archive may raise."""


@dataclass(frozen=True)
class Archive:
    """A file that holds a data set, or a part of one.

    url: the official address
    checksum: `sha256:` or `md5:` and hex digits, as pooch takes them
    """

    url: str
    checksum: str

    @property
    def name(self) -> str:
        """The name of the file, which is the same at every address."""
        return self.url.rpartition("/")[2]


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .zip, .tar, .tar.gz or .tgz into a folder.

    Raises `InvalidInput` for a damaged archive and for one with links, devices or paths that leave
    the folder, `Unusable` if a file cannot be written.
    """
    members = _from_zip(archive) if archive.suffix == ".zip" else _from_tar(archive)
    try:
        for name, content in members:
            place = folder / _inside(name, archive)
            _write(place, content)
    except DAMAGE as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(f"{archive}: not a readable archive ({error})") from error


def _write(place: Path, content: IO[bytes] | None) -> None:
    """Write a file, or create a folder if there is no content."""
    try:
        if content is None:
            place.mkdir(parents=True, exist_ok=True)
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        with content, place.open("wb") as file:
            shutil.copyfileobj(content, file, 2**20)
    except OSError as error:
        raise Unusable(f"cannot write {place}: {error.strerror or error}") from error


def _inside(name: str, archive: Path) -> PurePosixPath:
    """The relative path of a member. Raises `InvalidInput` for one that leaves the folder."""
    path = PurePosixPath(name)
    fits = not path.is_absolute() and ".." not in path.parts and "\\" not in name
    require(fits, f"{archive}: refusing to unpack {name!r}: the path leaves the folder")
    return path


def _from_tar(archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    """The name and content of each member; folders have no content."""
    with tarfile.open(archive) as opened:
        for member in opened:
            plain = member.isreg() or member.isdir()
            require(plain, f"{archive}: refusing to unpack {member.name!r}: a link or device")
            yield member.name, opened.extractfile(member)


def _from_zip(archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    """The name and content of each member; folders have no content."""
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
            require(plain, f"{archive}: refusing to unpack {member.filename!r}: a link or device")
            yield member.filename, None if member.is_dir() else opened.open(member)

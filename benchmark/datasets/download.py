"""Downloads of public data sets: complete files with the right checksum, or none.

pooch transfers and verifies. This module adds what it lacks: an interrupted transfer resumes, also
in a later command, because the bytes received so far are kept in a `.part` file.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol
from urllib.parse import urlsplit

from rich.filesize import decimal

from bdbench.datasets.archives import Archive, unpack
from bdbench.models.plugins.errors import InvalidInput, require
from bdbench.storage.atomic import Unusable, check_writable
from bdbench.storage.locks import locked

if TYPE_CHECKING:
    from requests import Response

MIRROR = "BDBENCH_MIRROR"
PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds between attempts at one file."""
TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as lost."""
CHUNK = 2**16
UNPACKED = 2
"""Largest size of the unpacked files, relative to that of the archive."""
NOT_SATISFIABLE = 416
TRANSIENT = (408, NOT_SATISFIABLE, 425, 429, 500, 502, 503, 504)
"""HTTP statuses after which another attempt may succeed."""
ELSEWHERE = f"name another address with --url URL or in {MIRROR}"


class Watcher(Protocol):
    """Follows the progress of a download."""

    def progress(self, name: str, done: int, total: int | None) -> None:
        """Called with the bytes of a file received so far, and in total if that is known."""

    def retrying(self, name: str, reason: str, pause: float) -> None:
        """Called with the reason why an attempt failed, and the seconds until the next one."""


def addresses_of(archives: Sequence[Archive], url: str | None) -> list[str]:
    """The address of each archive.

    url: address of the file, or of the folder that holds the files, in place of `$BDBENCH_MIRROR`
        and the official addresses

    Raises `InvalidInput` for a URL that is not http or https.
    """
    base = url or os.environ.get(MIRROR)
    if not base:
        return [archive.url for archive in archives]
    source = "--url" if url else MIRROR
    try:
        parts = urlsplit(base)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    require(
        fits and base.isprintable(),
        f"{source} must begin with http://HOST or https://HOST, got {base!r}",
    )
    if url and len(archives) == 1 and not url.endswith("/"):
        return [url]
    return [f"{base.rstrip('/')}/{archive.name}" for archive in archives]


def download(
    name: str, archives: Sequence[Archive], folder: Path, url: str | None, watcher: Watcher
) -> Path:
    """Download the archives of a data set and unpack them to `<folder>/<name>`, which is then
    complete or absent. Returns that folder.

    Until all archives are unpacked, `<folder>/.<name>.download` keeps what was received, so that
    the next command resumes.

    Raises `InvalidInput` for an address without the official file and while another command
    downloads the same data set, `Unusable` for a folder that cannot be written or is too small.
    """
    addresses = addresses_of(archives, url)
    place, staging = folder / name, folder / f".{name}.download"
    require(
        not place.is_dir() or _is_empty(place),
        f"refusing to overwrite {place}, which is not empty: move or remove it",
    )
    check_writable(staging)
    with _alone_in(staging, name):
        files = [
            fetch(archive, address, staging, watcher)
            for archive, address in zip(archives, addresses, strict=True)
        ]
        _unpack_all(files, staging / "unpacked", place)
        for file in files:
            file.unlink(missing_ok=True)
    return place


def _unpack_all(files: Sequence[Path], unpacked: Path, place: Path) -> None:
    shutil.rmtree(unpacked, ignore_errors=True)
    try:
        for file in files:
            unpack(file, unpacked)
        os.replace(unpacked, place)
    except OSError as error:
        raise Unusable(f"cannot write {place}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)


def fetch(archive: Archive, address: str, folder: Path, watcher: Watcher) -> Path:
    """Download one archive into a folder and return its path. Raises as `download` does.

    A file that is already there with the right checksum is not transferred again.
    """
    import pooch

    pooch.get_logger().setLevel("WARNING")
    part = folder / f"{archive.name}.part"
    store = pooch.create(
        folder, "", registry={archive.name: archive.checksum}, urls={archive.name: address}
    )
    # What an earlier command left may be a part of another file; then start again, once.
    resumed, shown = part.exists(), without_password(address)
    while True:
        try:
            if resumed and pooch.hashes.hash_matches(part, archive.checksum):
                # Whole: a server has no bytes beyond it, and would send all of it again.
                os.replace(part, folder / archive.name)
            return Path(store.fetch(archive.name, downloader=_Downloader(part, watcher)))
        except InvalidInput:
            raise
        except _Failed as error:
            raise InvalidInput(f"cannot download {shown}: {error}; {ELSEWHERE}") from None
        except ValueError:
            if not resumed:
                kind = archive.checksum.partition(":")[0]
                raise InvalidInput(
                    f"{shown} is not the official {archive.name}: its {kind} differs; {ELSEWHERE}"
                ) from None
            resumed = False
        except OSError as error:
            raise Unusable(f"cannot write in {folder}: {error.strerror or error}") from error


class _Failed(Exception):
    """A file cannot be downloaded; the message says why."""


class _Interrupted(Exception):
    """An attempt failed, but another may succeed; the message says why."""


@dataclass(frozen=True)
class _Downloader:
    """Transfers one file, in several attempts if needed; pooch calls it.

    part: the file of the bytes received so far
    """

    part: Path
    watcher: Watcher

    def __call__(self, url: str, output_file: str, pooch: Any) -> None:
        for pause in PAUSES:
            try:
                self._attempt(url)
                break
            except _Interrupted as error:
                self.watcher.retrying(self._name, str(error), pause)
                time.sleep(pause)
        else:
            try:
                self._attempt(url)
            except _Interrupted as error:
                raise _Failed(str(error)) from error
        os.replace(self.part, output_file)

    @property
    def _name(self) -> str:
        return self.part.name.removesuffix(".part")

    def _attempt(self, url: str) -> None:
        """Receive what is missing. Raises `_Interrupted` if another attempt may succeed, else
        `_Failed`."""
        import requests

        try:
            self._receive(url)
        except requests.HTTPError as error:
            answer = error.response
            assert answer is not None
            status, reason = answer.status_code, f"{answer.status_code} {answer.reason or 'error'}"
            if status == NOT_SATISFIABLE:
                # The part is not the beginning of this file.
                self.part.unlink(missing_ok=True)
            raise (_Interrupted if status in TRANSIENT else _Failed)(reason) from error
        except (
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
        ) as error:
            raise _Interrupted(_innermost(error)) from error
        except requests.RequestException as error:
            raise _Failed(_innermost(error)) from error

    def _receive(self, url: str) -> None:
        import pooch

        with self.part.open("ab") as file:
            stream = _Stream(file, partial(self.watcher.progress, self._name))
            # Compression would change the number of bytes.
            headers = {"Accept-Encoding": "identity"}
            if stream.done:
                headers["Range"] = f"bytes={stream.done}-"
            hooks = {"response": stream.begin}
            transfer = pooch.HTTPDownloader(
                chunk_size=CHUNK, timeout=TIMEOUT, headers=headers, hooks=hooks
            )
            transfer(url, stream, None)
        stream.end()


class _Stream:
    """A file that is being received. It starts from the beginning if the server cannot resume."""

    def __init__(self, file: BinaryIO, progress: Callable[[int, int | None], None]) -> None:
        self.file, self.progress = file, progress
        self.done = file.tell()
        self.total: int | None = None

    def begin(self, response: Response, **options: Any) -> None:
        """Read the headers of a response, before its body arrives."""
        if response.status_code not in (200, 206):
            return
        if response.status_code == 200:
            self.file.truncate(0)
            self.done = 0
        length = response.headers.get("Content-Length", "")
        if length.isdecimal():
            self.total = self.done + int(length)
            self._check_room(int(length), self.total)

    def write(self, chunk: bytes) -> None:
        self.file.write(chunk)
        self.done += len(chunk)
        self.progress(self.done, self.total)

    def flush(self) -> None:
        self.file.flush()

    def end(self) -> None:
        """Raises `_Interrupted` unless all bytes were received."""
        if self.total is not None and self.done < self.total:
            raise _Interrupted(
                f"the connection was lost after {self.done:,} of {self.total:,} bytes"
            )

    def _check_room(self, missing: int, total: int) -> None:
        """Raises `Unusable` if the disk has no room for the archive and its unpacked files."""
        folder = Path(self.file.name).parent
        needed, free = missing + UNPACKED * total, shutil.disk_usage(folder).free
        if free < needed:
            raise Unusable(
                f"{folder} has {decimal(free)} free but needs {decimal(needed)}: free some space, "
                "or name another folder with --data DIR"
            )


def _innermost(error: BaseException) -> str:
    """The message of the innermost cause of an error, without what libraries wrap around it."""
    inner: BaseException | None = error
    while inner is not None:
        error = inner
        causes = (getattr(error, "reason", None), *error.args, error.__cause__)
        inner = next((each for each in causes if isinstance(each, BaseException)), None)
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def without_password(address: str) -> str:
    """An address that is safe to print: without user name, password and query."""
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def _is_empty(folder: Path) -> bool:
    return next(folder.iterdir(), None) is None


@contextmanager
def _alone_in(staging: Path, name: str) -> Iterator[None]:
    """Hold the lock of a staging folder, if files can be locked there; then remove the folder if it
    is empty. Raises `InvalidInput` while another command holds it."""
    try:
        with ExitStack() as stack:
            with suppress(Unusable):
                alone = stack.enter_context(locked(staging / "lock"))
                require(alone, f"another command is downloading {name}: wait for it")
            yield
    finally:
        with suppress(OSError):
            staging.rmdir()

"""Downloads of public data sets: whole files with the right checksum, or none.

pooch transfers and verifies. What it lacks is here: a transfer that is cut goes on where it was,
also in a later command, because what has come lies in a `.part` file beside its place.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol
from urllib.parse import urlsplit

from filelock import FileLock, Timeout
from rich.filesize import decimal

from bdbench.datasets.archives import Archive, unpack
from bdbench.models.plugins.errors import InvalidInput, require
from bdbench.storage.atomic import Unusable, check_writable

if TYPE_CHECKING:
    from requests import Response

MIRROR = "BDBENCH_MIRROR"
PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds between attempts at one file."""
TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as cut."""
CHUNK = 2**16
UNPACKED = 2
"""What an archive holds, at most, in times its own bytes."""
NOT_SATISFIABLE = 416
TRANSIENT = (408, NOT_SATISFIABLE, 425, 429, 500, 502, 503, 504)
"""HTTP statuses after which another attempt may be better."""
ELSEWHERE = f"name another place with --url URL or in {MIRROR}"


class Watcher(Protocol):
    """Told how a download goes on."""

    def progress(self, name: str, done: int, total: int | None) -> None:
        """Of a file, the bytes so far, and all of them where that is known."""

    def again(self, name: str, reason: str, pause: float) -> None:
        """Why an attempt at a file failed, and after how many seconds the next one begins."""


def places(archives: Sequence[Archive], url: str | None) -> list[str]:
    """The address of each archive.

    url: of the file, or of the folder of several, in place of `$BDBENCH_MIRROR` and the official
        place. Raises `InvalidInput` for what is no address.
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
    """Get the archives of a data set and unpack them as `<folder>/<name>`, which is whole or not
    there. Returns that folder.

    What has come stays in `<folder>/.<name>.download` until all is unpacked, for the next command.
    Raises `InvalidInput` for an address that gives no such file and beside another command that
    gets it, `Unusable` for a folder that cannot be written or is too small.
    """
    addresses = places(archives, url)
    place, workshop = folder / name, folder / f".{name}.download"
    require(not place.is_dir() or _is_empty(place), f"{place} is in the way; move it, or remove it")
    check_writable(workshop)
    with _alone(workshop, name):
        files = [
            fetch(archive, address, workshop, watcher)
            for archive, address in zip(archives, addresses, strict=True)
        ]
        _unpack_all(files, workshop / "unpacked", place)
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
    """One archive as a file in the folder, whole and with the right checksum. Raises as `download`.

    A file that is there with the right checksum is not transferred again.
    """
    import pooch

    pooch.get_logger().setLevel("WARNING")
    part = folder / f"{archive.name}.part"
    store = pooch.create(
        folder, "", registry={archive.name: archive.checksum}, urls={archive.name: address}
    )
    # Only what an earlier command left may be of another place.
    resumed, shown = part.exists(), without_password(address)
    while True:
        try:
            return Path(store.fetch(archive.name, downloader=_Receiver(part, watcher)))
        except InvalidInput:
            raise
        except _Refused as error:
            raise InvalidInput(f"cannot download {shown}: {error}; {ELSEWHERE}") from None
        except ValueError:
            if not resumed:
                kind = archive.checksum.partition(":")[0]
                raise InvalidInput(
                    f"{shown} is not the official {archive.name}, its {kind} differs; nothing of it"
                    f" was kept; {ELSEWHERE}"
                ) from None
            resumed = False
        except OSError as error:
            raise Unusable(f"cannot write in {folder}: {error.strerror or error}") from error


class _Refused(Exception):
    """Why a file does not come, in words."""


class _Cut(Exception):
    """A connection ended before the file did."""


@dataclass(frozen=True)
class _Receiver:
    """Transfers one file, in several attempts if need be: what pooch calls a downloader.

    part: where bytes are gathered
    """

    part: Path
    watcher: Watcher

    def __call__(self, url: str, output_file: str, pooch: Any) -> None:
        for pause in PAUSES:
            try:
                self._attempt(url)
                break
            except _Cut as error:
                self.watcher.again(self._name, str(error), pause)
                time.sleep(pause)
        else:
            try:
                self._attempt(url)
            except _Cut as error:
                raise _Refused(str(error)) from error
        os.replace(self.part, output_file)

    @property
    def _name(self) -> str:
        return self.part.name.removesuffix(".part")

    def _attempt(self, url: str) -> None:
        """Receive what is missing. Raises `_Cut` where another attempt may be better, else
        `_Refused`."""
        import requests

        try:
            self._receive(url)
        except requests.HTTPError as error:
            answer = error.response
            assert answer is not None
            status, reason = answer.status_code, f"{answer.status_code} {answer.reason or 'error'}"
            if status == NOT_SATISFIABLE:
                # What is there is no beginning of this file.
                self.part.unlink(missing_ok=True)
            raise (_Cut if status in TRANSIENT else _Refused)(reason) from error
        except (
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
        ) as error:
            raise _Cut(_innermost(error)) from error
        except requests.RequestException as error:
            raise _Refused(_innermost(error)) from error

    def _receive(self, url: str) -> None:
        import pooch

        with self.part.open("ab") as file:
            stream = _Stream(file, partial(self.watcher.progress, self._name))
            # As it is, for its bytes are counted.
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
    """A file that is being received. It begins anew where a server does not go on."""

    def __init__(self, file: BinaryIO, progress: Callable[[int, int | None], None]) -> None:
        self.file, self.progress = file, progress
        self.done = file.tell()
        self.total: int | None = None

    def begin(self, response: Response, **options: Any) -> None:
        """Look at the head of an answer, before its body comes."""
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
        """Raises `_Cut` unless all has come."""
        if self.total is not None and self.done < self.total:
            raise _Cut(f"the connection was cut after {self.done:,} of {self.total:,} bytes")

    def _check_room(self, missing: int, total: int) -> None:
        """Raises `Unusable` where there is no room for the archive and what it holds."""
        folder = Path(self.file.name).parent
        needed, free = missing + UNPACKED * total, shutil.disk_usage(folder).free
        if free < needed:
            raise Unusable(
                f"{folder} has {decimal(free)} free and {decimal(needed)} are needed; make room, or"
                " name another folder with --data DIR"
            )


def _innermost(error: BaseException) -> str:
    """The cause of an error, without the classes that libraries put around it."""
    inner: BaseException | None = error
    while inner is not None:
        error = inner
        around = (getattr(error, "reason", None), *error.args, error.__cause__)
        inner = next((each for each in around if isinstance(each, BaseException)), None)
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def without_password(address: str) -> str:
    """An address as it may be shown: without the name, password and query that it may hold."""
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def _is_empty(folder: Path) -> bool:
    return next(folder.iterdir(), None) is None


@contextmanager
def _alone(workshop: Path, name: str) -> Iterator[None]:
    """Raises `InvalidInput` while another command gets the same data set, where the file system has
    locks. A workshop in which nothing is left is removed."""
    file = workshop / "lock"
    lock = FileLock(file, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise InvalidInput(f"another command is getting {name}; wait until it is done") from None
    except (OSError, NotImplementedError):
        pass
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):
            workshop.rmdir()

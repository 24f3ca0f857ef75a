"""Data sets that can be downloaded: where they are, the download, and the offer of one."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from bdbench.cli.group import say
from bdbench.datasets.base import Source
from bdbench.datasets.download import Watcher, addresses_of, download, without_password
from bdbench.datasets.files import FileSource
from bdbench.machine.terminal import Terminal
from bdbench.models.plugins.errors import InvalidInput, require, shown
from bdbench.running.progress import has_bar
from bdbench.storage import mark
from bdbench.storage.folders import cache_root, roots

STEPS = 10
"""Progress lines of a file of known size, without a terminal."""
PROBLEM = "PROBLEM"
"""The first word about a data set whose folder cannot be read."""
UNKNOWN = 2**24
"""Bytes between the progress lines of a file of unknown size."""


class ProgressLines:
    """Prints a line now and then to show how far a download is."""

    def __init__(self) -> None:
        self._steps: dict[str, int] = {}

    def progress(self, name: str, done: int, total: int | None) -> None:
        step = done * STEPS // total if total else done // UNKNOWN
        if self._steps.get(name, 0) < step:
            self._steps[name] = step
            of = f" of {decimal(total)}" if total else ""
            say(f"{name}: {decimal(done)}{of}")

    def retrying(self, name: str, reason: str, pause: float) -> None:
        say(f"{name}: {reason}; trying again in {pause:g} s", err=True)


class ProgressBars(ProgressLines):
    """Shows a progress bar for each file on a terminal."""

    def __init__(self, bars: Progress) -> None:
        super().__init__()
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def progress(self, name: str, done: int, total: int | None) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(shown(name), total=total)
        self._bars.update(self._tasks[name], completed=done, total=total)

    def retrying(self, name: str, reason: str, pause: float) -> None:
        self._bars.console.print(
            f"{name}: {reason}; trying again in {pause:g} s", markup=False, highlight=False
        )


@contextmanager
def watched() -> Iterator[Watcher]:
    """Progress bars if standard output is a terminal, else progress lines."""
    console = Terminal()
    if not has_bar(console):
        yield ProgressLines()
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        yield ProgressBars(bars)


def get(source: Source, data: Path | None = None, url: str | None = None) -> None:
    """Download a data set unless it is already there, and print where it is.

    data: folder to put it into, None for `data` in the cache
    url: see `addresses_of`

    Raises `InvalidInput` for a data set that cannot be downloaded, and as `download` does.
    """
    downloadable = _downloadable(source)
    searched = roots(data, create=True)
    if downloadable.is_complete(searched):
        say(f"{source.name} is already there: {source.locate(searched)}; nothing to download")
        return
    addresses = addresses_of(downloadable.archives, url)
    for archive, address in zip(downloadable.archives, addresses, strict=True):
        say(f"downloading {archive.name} from {without_password(address)}")
    if data is None:
        mark.claim(cache_root())
    folder = searched[0] if data else cache_root() / "data"
    with watched() as watcher:
        download(source.name, downloadable.archives, folder, url, watcher)
    where = source.locate([folder])
    require(
        where is not None,
        f"{source.name} was unpacked to {folder / source.name}, which has none of its layouts: "
        f"{', '.join(downloadable.layouts)}",
    )
    say(f"downloaded {source.name}: {where}")


def offer(sources: Iterable[Source], data: Path | None) -> None:
    """On a terminal, ask whether to download each missing data set; elsewhere, do nothing."""
    if not _at_terminal():
        return
    searched = roots(data)
    for source in {source.name: source for source in sources}.values():
        missing = isinstance(source, FileSource) and source.archives
        if missing and source.locate(searched) is None:
            question = f"data set {source.name} was not found; download it to"
            if click.confirm(f"{question} {(data or cache_root() / 'data')}?", default=False):
                get(source, data)


def _at_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def whereabouts(source: Source, searched: Sequence[Path]) -> str:
    """Where the images of a data set were found or, if nowhere, how to get them. It begins with
    PROBLEM where that cannot be known."""
    try:
        found = source.locate(searched)
    except InvalidInput as error:
        return f"{PROBLEM}: {error}"
    if found is not None or not isinstance(source, FileSource):
        return found or "not found"
    if source.archives:
        return f"not found; `bdbench data get {source.name}` downloads it"
    return "not found" if source.is_named else source.advice


def _downloadable(source: Source) -> FileSource:
    """The data set, if it has archives. Raises `InvalidInput` for another."""
    if isinstance(source, FileSource) and source.archives:
        return source
    from bdbench.datasets.registry import datasets

    known = [name for name in datasets.names() if getattr(datasets.factory(name), "archives", ())]
    where = source.locate([])
    why = f"needs no files ({where})" if where else "has no public download"
    raise InvalidInput(f"data set {source.name} {why}; choose one of {', '.join(known)}")

"""Data sets that come from elsewhere: where they are, getting them, and asking whether to."""

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
from bdbench.datasets.download import Watcher, download, places, without_password
from bdbench.datasets.files import FileSource
from bdbench.machine.terminal import Terminal
from bdbench.models.plugins.errors import InvalidInput, require, shown
from bdbench.storage import mark
from bdbench.storage.folders import cache_root, roots

STEPS = 10
"""Lines about a file where there is no terminal."""
UNKNOWN = 2**24
"""Bytes between lines about a file of unknown size."""


class Lines:
    """Says now and then, in a line, how far a download is."""

    def __init__(self) -> None:
        self._said: dict[str, int] = {}

    def progress(self, name: str, done: int, total: int | None) -> None:
        step = done * STEPS // total if total else done // UNKNOWN
        if self._said.get(name, 0) < step:
            self._said[name] = step
            of = f" of {decimal(total)}" if total else ""
            say(f"{name}: {decimal(done)}{of}")

    def again(self, name: str, reason: str, pause: float) -> None:
        say(f"{name}: {reason}; trying again in {pause:g} s", err=True)


class Bars(Lines):
    """Shows bars on a terminal."""

    def __init__(self, bars: Progress) -> None:
        super().__init__()
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def progress(self, name: str, done: int, total: int | None) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(shown(name), total=total)
        self._bars.update(self._tasks[name], completed=done, total=total)

    def again(self, name: str, reason: str, pause: float) -> None:
        self._bars.console.print(
            f"{name}: {reason}; trying again in {pause:g} s", markup=False, highlight=False
        )


@contextmanager
def watched() -> Iterator[Watcher]:
    """What shows a download, as suits standard output."""
    console = Terminal()
    if not console.is_terminal:
        yield Lines()
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        yield Bars(bars)


def get(source: Source, data: Path | None = None, url: str | None = None) -> None:
    """Download a data set unless it is there, and say where it is.

    data: folder to put it into, None for `data` in the cache
    url: see `places`
    """
    gettable = _gettable(source)
    if gettable.is_whole(roots(data)):
        say(f"{source.name} is there: {source.locate(roots(data))}; nothing to download")
        return
    for archive, address in zip(gettable.archives, places(gettable.archives, url), strict=True):
        say(f"{archive.name} from {without_password(address)}")
    if data is None:
        mark.claim(cache_root())
    folder = roots(data)[0] if data else cache_root() / "data"
    with watched() as watcher:
        download(source.name, gettable.archives, folder, url, watcher)
    where = source.locate([folder])
    require(
        where is not None,
        f"{source.name} was unpacked in {folder / source.name}, where none of its layouts is: "
        f"{', '.join(gettable.layouts)}",
    )
    say(f"{source.name} is there: {where}")


def offer(sources: Iterable[Source], data: Path | None) -> None:
    """Ask whether to get what is missing, where a person is at a terminal; else do nothing."""
    if not _at_terminal():
        return
    searched = roots(data)
    for source in {source.name: source for source in sources}.values():
        missing = isinstance(source, FileSource) and source.archives
        if missing and source.locate(searched) is None:
            question = f"data set {source.name} is not there; download it to"
            if click.confirm(f"{question} {(data or cache_root() / 'data')}?", default=False):
                get(source, data)


def _at_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def whereabouts(source: Source, searched: Sequence[Path]) -> str:
    """Where the images of a data set are or, if nowhere, how to come by them."""
    found = source.locate(searched)
    if found is not None or not isinstance(source, FileSource):
        return found or "not found"
    if source.archives:
        return f"not found; bdbench data get {source.name}"
    return "not found" if source.is_named else source.advice


def _gettable(source: Source) -> FileSource:
    if isinstance(source, FileSource) and source.archives:
        return source
    from bdbench.datasets.registry import datasets

    known = [name for name in datasets.names() if getattr(datasets.factory(name), "archives", ())]
    where = source.locate([])
    why = f"needs no files ({where})" if where else "has no public place"
    raise InvalidInput(f"data set {source.name} {why}; choose one of {', '.join(known)}")

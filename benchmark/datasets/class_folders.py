"""Images in one folder for each class. The names of the folders, in order, are the classes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bdbench.datasets.files import Decoded, Located
from bdbench.datasets.images import SUFFIXES, ImageCollector, Resize
from bdbench.models.plugins.errors import InvalidInput, visible

LAYOUT = "{train,val}/CLASS/*.{JPEG,png,...}"
IMAGES = f"CLASS/*.{{{','.join(suffix.removeprefix('.') for suffix in SUFFIXES)}}}"
"""The pattern of the files that are read."""
TESTS = ("val", "test")
"""Names of the folder of test images; the first one that exists is used."""
JUNK = ("__MACOSX", "Thumbs.db", "desktop.ini")
"""What operating systems leave in folders, besides hidden files."""
NAMED = 3
"""Largest number of files and folders that a note names."""

Labelled = list[tuple[Path, int]]
"""Image files, each with its label."""


@dataclass(frozen=True)
class Listing:
    """The image files of a data set and their labels.

    base: the folder of the data set
    splits: the folders in it that hold the class folders, none if it holds them itself
    names: the class names
    unread: what is neither a class folder nor an image of one, where these are
    """

    base: Path
    splits: tuple[str, ...]
    names: tuple[str, ...]
    train: Labelled
    test: Labelled
    unread: Sequence[Path]

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of both sets."""
        return tuple(path for path, _ in (*self.train, *self.test))

    @property
    def left_out(self) -> str:
        """A note on the files that are not read, empty if there are none. Raises `InvalidInput` for
        an unreadable folder."""
        if not self.splits:
            return left_out(self.base, self.unread, IMAGES)
        beside = [
            Path(entry.path)
            for entry in entries(self.base)
            if entry.name not in self.splits and (_is_folder(entry) or _is_image(entry))
        ]
        where = self.splits[0] if len(self.splits) == 1 else f"{{{','.join(self.splits)}}}"
        note = left_out(self.base, [*self.unread, *beside], f"{where}/{IMAGES}")
        if not all((self.base / name).is_dir() for name in TESTS):
            return note
        choice = f"both {' and '.join(TESTS)} are here: {self.splits[-1]} is used"
        return f"{choice}; {note}" if note else choice


def locate(
    base: Path, size: int, resize: Resize, check_names: Callable[[Path, Sequence[str]], None]
) -> Located:
    """The data set in `<base>/train` and `<base>/val` or `test`.

    size: height and width of the images, pixels
    check_names: raises `InvalidInput` for a folder with the wrong classes
    """
    try:
        return located(list_splits(base, check_names), size, resize)
    except InvalidInput as error:
        problem = str(error)

    def refuse() -> Decoded:
        # Raised only here, so that a folder with a problem is found and named.
        raise InvalidInput(problem)

    return Located("class folders", base, (), refuse, problem)


def located(listing: Listing, size: int, resize: Resize) -> Located:
    """The data set of a listing, with images of so many pixels a side. Raises `InvalidInput` for an
    unreadable folder."""
    read = partial(decode, listing, size, resize)
    return Located("class folders", listing.base, listing.files, read, left_out=listing.left_out)


def decode(listing: Listing, size: int, resize: Resize) -> Decoded:
    """Decode the images of both sets. Raises `InvalidInput` for one that cannot be decoded."""
    train, test = (
        _read(part, size, resize, len(listing.names)) for part in (listing.train, listing.test)
    )
    return Decoded.of(train, test, tuple(map(visible, listing.names)))


def list_splits(base: Path, check_names: Callable[[Path, Sequence[str]], None]) -> Listing:
    """List the files below `train` and `val` or `test`. Raises `InvalidInput` if a folder or class
    is missing."""
    train, test = base / "train", find_test_folder(base)
    if test is None:
        raise InvalidInput(f"{base} has train, but neither val nor test")
    names = class_names(train)
    check_names(train, names)
    others = class_names(test)
    check_names(test, others)
    if differing := {*names} ^ {*others}:
        class_name = min(differing)
        lacking = test.name if class_name in names else "train"
        raise InvalidInput(f"{base / lacking} has no class {class_name}")
    training, unread = list_images(train, names)
    testing, also_unread = list_images(test, names)
    splits = (train.name, test.name)
    return Listing(base, splits, names, training, testing, [*unread, *also_unread])


def find_test_folder(base: Path) -> Path | None:
    """The folder of the test images, None if there is none."""
    return next((base / name for name in TESTS if (base / name).is_dir()), None)


def class_names(folder: Path) -> tuple[str, ...]:
    """The names of the folders inside, sorted. Raises `InvalidInput` for an unreadable folder."""
    return tuple(entry.name for entry in entries(folder) if _is_folder(entry))


def list_images(folder: Path, names: Sequence[str]) -> tuple[Labelled, list[Path]]:
    """List the images in the folders of the classes, and everything else that is there. Raises
    `InvalidInput` for a class without images."""
    known = {*names}
    others = [Path(entry.path) for entry in entries(folder) if entry.name not in known]
    images: Labelled = []
    for label, name in enumerate(names):
        inside = entries(folder / name)
        paths = [Path(entry.path) for entry in inside if _is_image(entry)]
        if not paths:
            _refuse_empty(folder / name, inside)
        images += [(path, label) for path in paths]
        if len(paths) < len(inside):
            taken = {*paths}
            others += [path for entry in inside if (path := Path(entry.path)) not in taken]
    return images, others


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder, sorted by name, without hidden files and `JUNK`. Raises
    `InvalidInput` for an unreadable folder."""
    try:
        with os.scandir(folder) as found:
            shown = [e for e in found if not e.name.startswith(".") and e.name not in JUNK]
    except OSError as error:
        raise InvalidInput(f"cannot read {folder}: {error.strerror or error}") from None
    return sorted(shown, key=lambda entry: entry.name)


def left_out(base: Path, unread: Iterable[Path], read: str) -> str:
    """A note on the files that are not read, with their number; empty if there are none.

    base: the folder that holds them all
    unread: files, and folders of which no file is read
    read: the pattern of the files that are read
    """
    counts = {path.relative_to(base).as_posix(): _count(path) for path in unread}
    found = (name for name, count in counts.items() if count)
    largest = sorted(found, key=lambda name: (-counts[name], name))
    if not largest:
        return ""
    named, rest = largest[:NAMED], sum(counts[name] for name in largest[NAMED:])
    few = ", ".join(f"{n} ({counts[n]:,} files)" if counts[n] > 1 else n for n in named)
    more = f" and {rest:,} more" if rest else ""
    return f"left out {sum(counts.values()):,}, as not {read}: {few}{more}"


def _count(path: Path) -> int:
    """The number of files below a folder; 1 for a file, and for a folder that cannot be read.

    Links in it are not followed, as they may lead anywhere.
    """
    if not os.path.isdir(path):
        return 1
    count, waiting = 0, [path]
    while waiting:
        try:
            inside = entries(waiting.pop())
        except InvalidInput:
            count += 1
            continue
        deeper = [Path(e.path) for e in inside if _is_folder(e) and not e.is_symlink()]
        count += len(inside) - len(deeper)
        waiting += deeper
    return count


def _is_image(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(SUFFIXES)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder; a broken link is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _refuse_empty(folder: Path, inside: Sequence[os.DirEntry[str]]) -> None:
    deeper = next((entry.name for entry in inside if _is_folder(entry)), None)
    hint = "" if deeper is None else f"; move those in {deeper} to {folder.name} itself"
    raise InvalidInput(f"{folder} has no images *{', *'.join(SUFFIXES)}{hint}")


def _read(labelled: Labelled, size: int, resize: Resize, num_classes: int) -> ImageCollector:
    collector = ImageCollector(size, resize, num_classes)
    for path, label in labelled:
        collector.add_file(path, label)
    return collector

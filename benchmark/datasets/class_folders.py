"""Images in one folder for each class. The names of the folders, in order, are the classes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bdbench.datasets.files import Decoded, Located
from bdbench.datasets.images import SUFFIXES, ImageCollector, Resize, left_out
from bdbench.models.data import ImageSet
from bdbench.models.plugins.errors import InvalidInput, require, visible

LAYOUT = "{train,val}/CLASS/*.{JPEG,png,...}"
TESTS = ("val", "test")
"""Names of the folder of test images; the first one that exists is used."""
JUNK = ("__MACOSX", "Thumbs.db", "desktop.ini")
"""What operating systems leave in folders, besides hidden files."""

Labelled = list[tuple[Path, int]]
"""Image files, each with its label."""


@dataclass(frozen=True)
class Listing:
    """The image files of a data set and their labels.

    names: the class names
    others: a note on what is neither a class folder nor an image, empty if there is nothing
    """

    names: tuple[str, ...]
    train: Labelled
    test: Labelled
    others: str = ""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of both sets."""
        return tuple(path for path, _ in (*self.train, *self.test))


def locate(
    base: Path, size: int, resize: Resize, check_names: Callable[[Path, Sequence[str]], None]
) -> Located:
    """The data set in `<base>/train` and `<base>/val` or `test`.

    size: height and width of the images, pixels
    check_names: raises `InvalidInput` for a folder with the wrong classes
    """
    try:
        listing, problem = list_splits(base, check_names), ""
    except InvalidInput as error:
        listing, problem = Listing((), [], []), str(error)

    def read() -> Decoded:
        # Raised only here, so that a folder with a problem is found and named.
        require(not problem, problem)
        return decode(listing, size, resize)

    return Located("class folders", base, listing.files, read, left_out=listing.others)


def decode(listing: Listing, size: int, resize: Resize) -> Decoded:
    """Decode the images of both sets. Raises `InvalidInput` for one that cannot be decoded."""
    train, test = (
        _read(part, size, resize, len(listing.names)) for part in (listing.train, listing.test)
    )
    return Decoded(train, test, tuple(map(visible, listing.names)))


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
    return Listing(names, training, testing, note_unread(base, [*unread, *also_unread]))


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
        paths = [Path(entry.path) for entry in inside if entry.name.lower().endswith(SUFFIXES)]
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


def note_unread(base: Path, others: Sequence[Path]) -> str:
    """A note on the paths that are not read, empty if there are none."""
    return left_out(path.relative_to(base).as_posix() for path in others)


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


def _read(labelled: Labelled, size: int, resize: Resize, num_classes: int) -> ImageSet:
    collector = ImageCollector(size, resize, num_classes)
    for path, label in labelled:
        collector.add_file(path, label)
    return collector.finish()

"""Images in one folder for each class, whose names in order are the classes."""

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
"""What the folder of test images may be called, the first one that is there."""
JUNK = ("__MACOSX", "Thumbs.db", "desktop.ini")
"""What systems leave in folders, beside files whose names begin with a dot."""

Labelled = list[tuple[Path, int]]


@dataclass(frozen=True)
class Listing:
    """The image files of a data set and their labels.

    names: of the classes
    others: what lies among class folders and images and is neither, in words
    """

    names: tuple[str, ...]
    train: Labelled
    test: Labelled
    others: str = ""

    @property
    def files(self) -> tuple[Path, ...]:
        """All of both sets."""
        return tuple(path for path, _ in (*self.train, *self.test))


def found(
    base: Path, size: int, resize: Resize, check_names: Callable[[Path, Sequence[str]], None]
) -> Located:
    """The data set in `<base>/train` and `val` or `test`.

    check_names: raises `InvalidInput` for a folder whose classes are not the right ones
    """
    try:
        listing, complaint = of_splits(base, check_names), ""
    except InvalidInput as error:
        listing, complaint = Listing((), [], []), str(error)

    def decode() -> Decoded:
        # Said no sooner: `locate` names the folder in any state, and `find` is part of it.
        require(not complaint, complaint)
        return decoded(listing, size, resize)

    return Located("class folders", base, listing.files, decode, left_out=listing.others)


def decoded(listing: Listing, size: int, resize: Resize) -> Decoded:
    """The images of both sets. Raises `InvalidInput` for one that cannot be decoded."""
    train, test = (
        _read(part, size, resize, len(listing.names)) for part in (listing.train, listing.test)
    )
    return Decoded(train, test, tuple(map(visible, listing.names)))


def of_splits(base: Path, check_names: Callable[[Path, Sequence[str]], None]) -> Listing:
    """The files below `train` and `val` or `test`. Raises `InvalidInput` unless all are there."""
    train, test = base / "train", folder_of_tests(base)
    if test is None:
        raise InvalidInput(f"{base}: val or test is missing beside train")
    names = class_names(train)
    check_names(train, names)
    others = class_names(test)
    check_names(test, others)
    differing = {*names} ^ {*others}
    if differing:
        raise InvalidInput(f"{base}: of train and {test.name}, one has no class {min(differing)}")
    training, beside = labelled(train, names)
    testing, further = labelled(test, names)
    return Listing(names, training, testing, unread(base, [*beside, *further]))


def folder_of_tests(base: Path) -> Path | None:
    """That of the test images, None where there is none."""
    return next((base / name for name in TESTS if (base / name).is_dir()), None)


def class_names(folder: Path) -> tuple[str, ...]:
    """The folders inside, in order. Raises `InvalidInput` for a folder that cannot be read."""
    return tuple(entry.name for entry in entries(folder) if _is_folder(entry))


def labelled(folder: Path, names: Sequence[str]) -> tuple[Labelled, list[Path]]:
    """The images in the folders of the classes, and what else lies there. Raises `InvalidInput` for
    a class without images."""
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
    """What lies in a folder, by name, but for hidden files. Raises `InvalidInput` where it cannot
    be read."""
    try:
        with os.scandir(folder) as found:
            shown = [e for e in found if not e.name.startswith(".") and e.name not in JUNK]
    except OSError as error:
        raise InvalidInput(f"cannot read {folder}: {error.strerror or error}") from None
    return sorted(shown, key=lambda entry: entry.name)


def unread(base: Path, others: Sequence[Path]) -> str:
    """A note on what is not read; empty where all is."""
    return left_out(path.relative_to(base).as_posix() for path in others)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """A link that leads nowhere is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _refuse_empty(folder: Path, inside: Sequence[os.DirEntry[str]]) -> None:
    deeper = next((entry.name for entry in inside if _is_folder(entry)), None)
    hint = "" if deeper is None else f"; those in {deeper} must lie in {folder.name} itself"
    raise InvalidInput(f"{folder}: has no images *{', *'.join(SUFFIXES)}{hint}")


def _read(labelled: Labelled, size: int, resize: Resize, num_classes: int) -> ImageSet:
    collector = ImageCollector(size, resize, num_classes)
    for path, label in labelled:
        collector.add_file(path, label)
    return collector.finish()

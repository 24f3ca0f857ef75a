"""ImageNet subset, Deng et al. 2009: photographs of twelve classes.

The paper names neither the classes nor their number. Twelve are what the work on ABL uses, and
fit the training times that the paper reports. Any twelve will do: they count from 0 in the order of
their folders' names, the WordNet ids.

Images become 224x224 pixels as usual for evaluation on ImageNet: the shorter side is brought to 256
pixels with a bilinear filter, and the centre is kept. Those that have 224x224 stay as they are.
Random resized crops are no part of it, because all data sets share the suite's augmentation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

from PIL import Image

from bdbench.datasets import parquet, register
from bdbench.datasets.files import Decoded, FileSource, Found
from bdbench.datasets.images import SUFFIXES, Album, left_out
from bdbench.models.data import ImageSet
from bdbench.models.plugins.errors import InvalidInput, check

CLASSES = tuple(f"{label:02d}" for label in range(12))
"""Names for Parquet files that have none."""
SIZE = 224
RESIZED = 256

Labelled = list[tuple[Path, int]]


@register("imagenet_subset", title="ImageNet subset")
@dataclass(frozen=True)
class ImageNetSubset(FileSource):
    """Twelve classes of ImageNet, 224x224 pixels, 15,600 training and 600 test images.

    train_images: number of training images to use, None for all; a fixed stratified subset
    """

    name: ClassVar[str] = "imagenet_subset"
    num_classes: ClassVar[int] = len(CLASSES)
    image_size: ClassVar[int] = SIZE
    train_size: ClassVar[int] = 15_600
    test_size: ClassVar[int] = 600
    flip: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 0.1
    layouts: ClassVar[tuple[str, ...]] = (
        f"imagenet_subset/{parquet.LAYOUT}",
        "imagenet_subset/{train,val}/CLASS/*.{JPEG,png,...} with 12 classes, or test for val",
    )

    def find(self, root: Path) -> Iterator[Found]:
        for found in parquet.find(root, self.name, CLASSES, self.image_size, crop):
            yield replace(found, decode=partial(_with_all_classes, found))
        if (root / self.name / "train").is_dir():
            yield class_folders(root / self.name)


def crop(image: Image.Image, size: int) -> Image.Image:
    """The central square of `size` pixels once the shorter side has 256, with a bilinear filter.

    What lies outside is never made, so that a long and narrow image does not fill the memory.
    """
    width, height = image.size
    side = min(width, height) * size / RESIZED
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BILINEAR, box)


def class_folders(base: Path) -> Found:
    """Image files below `<base>/train` and `val` or `test`, in one folder for each class."""
    complaint = ""
    try:
        names, train, test = _listing(base)
    except InvalidInput as error:
        names, train, test, complaint = (), [], [], str(error)

    def decode() -> Decoded:
        # Said no sooner: `locate` names the folder in any state, and `find` is part of it.
        check(not complaint, complaint)
        return Decoded(_read(train), _read(test), names)

    files = tuple(path for path, _ in (*train, *test))
    unread = left_out(path.relative_to(base).as_posix() for path in _unread(files))
    return Found("class folders", base, files, decode, left_out=unread)


def _unread(files: tuple[Path, ...]) -> Iterator[Path]:
    """What lies beside images, or beside the folders of their classes."""
    known = {*files, *(path.parent for path in files)}
    for folder in {above for path in files for above in path.parents[:2]}:
        yield from (path for path in folder.glob("[!.]*") if path not in known)


def _with_all_classes(found: Found) -> Decoded:
    decoded = found.decode()
    for split, data in (("train", decoded.train), ("test", decoded.test)):
        counts = data.labels.bincount(minlength=data.num_classes).tolist()
        if 0 in counts:
            where = f"{found.folder}: {split}-*.parquet"
            raise InvalidInput(f"{where} has no image of label {counts.index(0)}")
    return decoded


def _listing(base: Path) -> tuple[tuple[str, ...], Labelled, Labelled]:
    """Class names, and the files of both splits. Raises `InvalidInput` unless all are there."""
    train = base / "train"
    test = next((base / name for name in ("val", "test") if (base / name).is_dir()), None)
    if test is None:
        raise InvalidInput(f"{base}: val or test is missing beside train")
    names = _class_names(train)
    differing = {*names} ^ {*_class_names(test)}
    if differing:
        raise InvalidInput(f"{base}: of train and {test.name}, one has no class {min(differing)}")
    return names, _files(train, names), _files(test, names)


def _class_names(folder: Path) -> tuple[str, ...]:
    names = sorted(path.name for path in folder.glob("[!.]*") if path.is_dir())
    check(
        len(names) == len(CLASSES),
        f"{folder}: has {len(names)} class folders, there must be {len(CLASSES)}",
    )
    return tuple(names)


def _files(folder: Path, names: Iterable[str]) -> Labelled:
    labelled = []
    for label, name in enumerate(names):
        visible = (folder / name).glob("[!.]*")
        paths = sorted(path for path in visible if path.suffix.lower() in SUFFIXES)
        check(bool(paths), f"{folder / name}: has no images *{', *'.join(SUFFIXES)}")
        labelled += [(path, label) for path in paths]
    return labelled


def _read(labelled: Labelled) -> ImageSet:
    album = Album(SIZE, crop, len(CLASSES))
    for path, label in labelled:
        album.add_file(path, label)
    return album.finish()

"""GTSRB, the German Traffic Sign Recognition Benchmark, Stallkamp et al. 2012: 43 traffic signs.

Images are complete frames, whose regions of interest are not cut out. They are resized to 32x32
pixels, whatever their proportions, with Pillow's bilinear filter, which averages where it shrinks.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bdbench.datasets import parquet, register
from bdbench.datasets.archives import Archive
from bdbench.datasets.class_folders import left_out
from bdbench.datasets.files import Decoded, FileSource, Located
from bdbench.datasets.images import ImageCollector, squash
from bdbench.models.plugins.errors import InvalidInput, require

CLASSES = tuple(f"{label:05d}" for label in range(43))
DIGITS = "[0-9]" * 5
TABLE = "GT-final_test.csv"
PLACE = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370"
SIZE = 32


@register("gtsrb", title="GTSRB")
@dataclass(frozen=True)
class GTSRB(FileSource):
    """GTSRB, resized to 32x32 pixels, 39,209 training and 12,630 test images.

    train_images: number of training images to use, None for all of them; a stratified
        subset, the same for the same files in the same order
    """

    name: ClassVar[str] = "gtsrb"
    num_classes: ClassVar[int] = 43
    image_size: ClassVar[int] = SIZE
    train_size: ClassVar[int] = 39_209
    test_size: ClassVar[int] = 12_630
    flip: ClassVar[bool] = False
    learning_rate: ClassVar[float] = 0.01
    layouts: ClassVar[tuple[str, ...]] = (
        parquet.layout("gtsrb"),
        f"[gtsrb/]GTSRB/Final_Training and Final_Test with {TABLE}",
        f"[gtsrb/]GTSRB/Training and Final_Test with {TABLE}",
    )
    archives: ClassVar[tuple[Archive, ...]] = (
        # The last two md5 are those of torchvision, which downloads a smaller training set. The
        # first is that of public loaders of the full set, which have the same other two.
        Archive(f"{PLACE}/GTSRB_Final_Training_Images.zip", "md5:f33fd80ac59bff73c82d25ab499e03a3"),
        Archive(f"{PLACE}/GTSRB_Final_Test_Images.zip", "md5:c7e4e6327067d32654124b0fe9e82185"),
        Archive(f"{PLACE}/GTSRB_Final_Test_GT.zip", "md5:fe31e9c9270bbcd7b84b7f21a9d9d9e5"),
    )

    def find(self, root: Path) -> Iterator[Located]:
        yield from parquet.find(root, self.name, CLASSES, self.image_size, squash)
        for base in (root / self.name, root):
            if (base / "GTSRB/Final_Training/Images").is_dir():
                yield locate(base, "official archive", "Final_Training/Images")
            if (base / "GTSRB/Training").is_dir():
                note = "torchvision's smaller training set of 26,640 images"
                yield locate(base, "torchvision's smaller archive", "Training", note)


def locate(base: Path, layout: str, training: str, note: str = "") -> Located:
    """The PPM images below `<base>/GTSRB`, with one folder for each class of training images.

    training: the folder of the training images below `GTSRB`
    """
    pictures = base / "GTSRB/Final_Test/Images"
    folder = base / "GTSRB" / training
    inside = sorted(folder.glob(f"{DIGITS}/[!.]*"))
    train = [path for path in inside if path.suffix == ".ppm"]
    beside = [path for path in folder.glob("[!.]*") if not path.match(DIGITS)]
    # Each class and the test images also have a CSV file, with regions of interest.
    there = (*inside, *beside, *pictures.glob("[!.]*"))
    others = [path for path in there if path.suffix not in (".ppm", ".csv")]
    tables = [folder / TABLE for folder in (base, base / "GTSRB", pictures)]
    table = next((path for path in tables if path.is_file()), None)

    def decode() -> Decoded:
        require(bool(train), f"{folder} has no images NNNNN/*.ppm")
        require(table is not None, f"{base} lacks {TABLE}, the file of the test labels")
        assert table is not None
        labelled = ((path, int(path.parent.name)) for path in train)
        return Decoded.of(_read(labelled), _read(_test_labels(table, pictures)), CLASSES)

    test = sorted(pictures.glob("*.ppm"))
    absent = sum(not (folder / name).is_dir() for name in CLASSES)
    classes = f"{absent or 'all'} class{'es' * (absent != 1)}"
    parts = (
        (absent > 0 or not train, f"training images of {classes}"),
        (not test, "test images"),
        (table is None, "test labels"),
    )
    if lacking := [part for lacks, part in parts if lacks]:
        note = f"{note}; " * bool(note) + f"{' and '.join(lacking)} are missing"
    files = (*train, *test, *((table,) if table else ()))
    unread = left_out(base, others, f"GTSRB/{{{training}/NNNNN,Final_Test/Images}}/*.ppm")
    return Located(layout, base, files, decode, note, unread)


def _test_labels(table: Path, pictures: Path) -> list[tuple[Path, int]]:
    """Image files and their labels, in the order of the table."""
    try:
        # Spreadsheets add a byte-order mark, and some use commas.
        with table.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            file.seek(0)
            delimiter = ";" if ";" in header else ","
            rows = list(csv.DictReader(file, delimiter=delimiter, skipinitialspace=True))
            found = [(pictures / Path(row["Filename"]).name, int(row["ClassId"])) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        raise InvalidInput(
            f"{table} needs columns Filename and ClassId, separated by semicolons or commas"
        ) from None
    require(bool(found), f"{table} has no rows")
    # Other files would be read without being part of the hash of the data set.
    other = next((path.name for path, _ in found if path.suffix != ".ppm"), None)
    require(other is None, f"{table} names {other!r}, which is not a file *.ppm")
    return found


def _read(labelled: Iterable[tuple[Path, int]]) -> ImageCollector:
    collector = ImageCollector(SIZE, squash, len(CLASSES))
    for path, label in labelled:
        collector.add_file(path, label)
    return collector

"""Hugging Face image Parquet: `{train,test}-*.parquet` with an image and a label in each row.

An image is a struct {bytes, path} that holds an encoded file. Columns have names of `IMAGES` and
`LABELS`. Rows are decoded in batches, so that memory holds little more than the decoded images.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bdbench.datasets.class_folders import left_out
from bdbench.datasets.files import Decoded, Located
from bdbench.datasets.images import ImageCollector, Resize
from bdbench.models.plugins.errors import InvalidInput, require

IMAGES = ("image", "img")
LABELS = ("label", "fine_label")
"""CIFAR-100 also has coarse labels."""
FOLDERS = ("data", "plain_text")
"""Folders of the files on Hugging Face, besides one that is named like the data set."""
FILES = "{train,test}-*.parquet"
BATCH = 1024
LARGEST_CHUNK = 2**26
"""Largest size in bytes of a row group that may be compressed to less than 1 %."""
SHARD = re.compile(r"-(\d+)-of-(\d+)(-[0-9a-f]+)?\.parquet$")


def layout(name: str) -> str:
    """Where the files of a data set may be, below a data folder."""
    return f"{name}/[{'|'.join(f'{below}/' for below in (*FOLDERS, name))}]{FILES}"


def find(
    root: Path, name: str, class_names: tuple[str, ...], size: int, resize: Resize | None
) -> Iterator[Located]:
    """The data set where `layout` says, if there is any Parquet file.

    class_names: used if the files do not name their classes
    size: height and width, pixels
    resize: applied to images of another size; None refuses them
    """
    for below in ("", *FOLDERS, name):
        folder = root / name / below
        files = [path for split in ("train", "test") for path in shards(folder, split)]
        if files:
            decode = partial(_decode, folder, class_names, size, resize)
            others = [path for path in folder.glob("[!.]*.parquet") if path not in files]
            unread = left_out(folder, others, FILES)
            yield Located("parquet", folder, tuple(files), decode, _missing(folder), unread)


def _missing(folder: Path) -> str:
    """What a folder lacks, empty if nothing."""
    try:
        for split in ("train", "test"):
            _check_complete(folder, split, shards(folder, split))
    except InvalidInput as error:
        return str(error)
    return ""


def _decode(
    folder: Path, class_names: tuple[str, ...], size: int, resize: Resize | None
) -> Decoded:
    train, names = read(folder, "train", len(class_names), size, resize)
    test, others = read(folder, "test", len(class_names), size, resize)
    require(
        not (names and others) or names == others,
        f"{folder}: train-*.parquet and test-*.parquet name different classes",
    )
    return Decoded.of(train, test, names or class_names)


def shards(folder: Path, split: str) -> list[Path]:
    """The files of one split, sorted by name."""
    return sorted(path for path in folder.glob(f"{split}-*.parquet") if path.is_file())


def read(
    folder: Path, split: str, num_classes: int, size: int, resize: Resize | None
) -> tuple[ImageCollector, tuple[str, ...]]:
    """Decode one split. Returns its images and its class names, which are empty if the files have
    none.

    Raises `InvalidInput` for a missing shard, a damaged file, missing columns, no rows, an image
    that cannot be decoded, is too large or has the wrong size, and a missing or invalid label.
    """
    files = shards(folder, split)
    _check_complete(folder, split, files)
    collector = ImageCollector(size, resize, num_classes)
    names: tuple[str, ...] = ()
    for path in files:
        found = _read_file(path, collector)
        require(
            not (names and found) or names == found,
            f"{path} names other classes than the files before it",
        )
        names = found or names
    require(bool(collector.labels), f"{folder}: {split}-*.parquet has no rows")
    return collector, names


def _check_complete(folder: Path, split: str, files: list[Path]) -> None:
    """Raises `InvalidInput` for missing shards: `train-00000-of-00002.parquet` is one of two."""
    require(bool(files), f"{folder}: {split}-*.parquet is missing")
    parts = [match for path in files if (match := SHARD.search(path.name))]
    if not parts:
        return
    totals = {match[2] for match in parts}
    indices = [int(match[1]) for match in parts]
    mixed = f"{folder}: {split}-*.parquet mixes files of several data sets"
    require(len(parts) == len(files) and len(totals) == 1, mixed)
    total = totals.pop()
    require(len(set(indices)) == len(indices) <= int(total), mixed)
    missing = next((i for i in range(len(indices)) if i not in indices), len(indices))
    require(
        missing == int(total), f"{folder}: {split}-{missing:0{len(total)}d}-of-{total} is missing"
    )


def _read_file(path: Path, collector: ImageCollector) -> tuple[str, ...]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            image, label_column, names = _check_schema(
                path, file.schema_arrow, collector.num_classes
            )
            _check_sizes(path, file.metadata)
            columns = [f"{image}.bytes", label_column]
            for batch in file.iter_batches(BATCH, columns=columns, use_threads=False):
                pictures, labels = batch.column(image), batch.column(label_column)
                for picture, label in zip(pictures.to_pylist(), labels.to_pylist(), strict=True):
                    origin = f"{path} row {row}"
                    require(label is not None, f"{origin}: label is missing")
                    content = (picture or {}).get("bytes") or b""
                    require(bool(content), f"{origin}: image has no bytes")
                    collector.add(content, label, origin)
                    row += 1
            require(row == file.metadata.num_rows, f"{path}: rows are missing")
    except InvalidInput:
        raise
    except (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InvalidInput(f"{path}: not a readable Parquet file ({reason})") from error
    return names


def _check_schema(path: Path, schema: Any, num_classes: int) -> tuple[str, str, tuple[str, ...]]:
    """The names of the image column and the label column, and the class names. Raises
    `InvalidInput` for missing columns and wrong types."""
    import pyarrow.types as types

    image, label = (
        next((name for name in known if schema.get_field_index(name) >= 0), None)
        for known in (IMAGES, LABELS)
    )
    if image is None or label is None:
        raise InvalidInput(
            f"{path} needs columns {' or '.join(IMAGES)}, and {' or '.join(LABELS)}; it has"
            f" {' '.join(', '.join(schema.names).split())[:200] or 'none'}"
        )
    kind = schema.field(image).type
    require(
        types.is_struct(kind)
        and kind.get_field_index("bytes") >= 0
        and (types.is_binary(b := kind.field("bytes").type) or types.is_large_binary(b)),
        f"{path}: column {image} must be a struct of bytes and path, not {str(kind)[:80]}",
    )
    kind = schema.field(label).type
    require(types.is_integer(kind), f"{path}: column {label} must be integer, not {str(kind)[:80]}")
    names = _class_names(schema.metadata or {}, label)
    require(
        len(names) in (0, num_classes),
        f"{path} names {len(names)} classes; {num_classes} are needed",
    )
    return image, label, names


def _check_sizes(path: Path, metadata: Any) -> None:
    """Raises `InvalidInput` for a file made to fill the memory. Images are compressed already, so
    Parquet hardly compresses them further."""
    # Not by column: if the footer is damaged, asking for a column kills the process.
    stored = path.stat().st_size
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        whole = group.total_byte_size
        require(
            whole <= max(LARGEST_CHUNK, 100 * stored),
            f"{path}: {stored:,} bytes would expand to {whole:,}",
        )


def _class_names(metadata: dict[bytes, bytes], label: str) -> tuple[str, ...]:
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[label]["names"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()

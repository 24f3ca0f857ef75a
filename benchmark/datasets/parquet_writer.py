"""Writes labelled images as Parquet in the Hugging Face layout, which `parquet.py` reads."""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from bdbench.storage.atomic import written

BATCH = 1024
"""Images in a row group."""


def write(
    path: Path,
    images: Tensor,
    columns: Mapping[str, Tensor],
    labels: Collection[str],
    class_names: Sequence[str],
) -> None:
    """Write a row for each image, as PNG.

    images: uint8 (n, 3, height, width)
    columns: int64 or bool (n,), by name
    labels: the names of the columns that hold classes

    Raises `Unusable` if the file cannot be written; an existing file is then unchanged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema(columns, labels, class_names)
    with written(path) as file, pq.ParquetWriter(file, schema, write_page_checksum=True) as writer:
        for start in range(0, len(images), BATCH):
            rows = slice(start, start + BATCH)
            pixels = images[rows].cpu().permute(0, 2, 3, 1).numpy()
            pictures = [
                {"bytes": _png(each), "path": f"{start + n}.png"} for n, each in enumerate(pixels)
            ]
            values = [column[rows].cpu().numpy() for column in columns.values()]
            writer.write_table(pa.table([pa.array(pictures, schema.types[0]), *values], schema))


def _schema(
    columns: Mapping[str, Tensor], labels: Collection[str], class_names: Sequence[str]
) -> Any:
    """The schema, with the metadata for a Hugging Face loader: image columns and class names."""
    import pyarrow as pa

    features: dict[str, Any] = {"image": {"_type": "Image"}}
    fields = [pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))]
    for name, values in columns.items():
        kind = "bool" if values.dtype == torch.bool else "int64"
        features[name] = {"dtype": kind, "_type": "Value"}
        if name in labels:
            features[name] = {"names": list(class_names), "_type": "ClassLabel"}
        fields.append(pa.field(name, pa.int64() if kind == "int64" else pa.bool_()))
    about = json.dumps({"info": {"features": features}})
    return pa.schema(fields, {"huggingface": about})


def _png(pixels: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()

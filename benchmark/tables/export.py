"""Records in long form, as CSV or Parquet: a row for each cell, or each point of its curve."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bdbench.models.plugins.errors import check, one_of
from bdbench.records.record import METRICS, Record
from bdbench.storage.atomic import write_atomically
from bdbench.tables.text import as_csv

FORMATS = ("csv", "parquet")
AXES = ("dataset", "model", "attack", "defense", "recipe")


def write(records: Sequence[Record], path: Path, form: str, epochs: bool) -> None:
    """Write a row for each record, or with `epochs` for each point of each curve.

    form: of `FORMATS`

    Raises `InvalidInput` for another format, where there is no row, and where the file cannot be
    written.
    """
    one_of(FORMATS, format=form)
    rows = [row for record in records for row in (_points(record) if epochs else [_row(record)])]
    check(bool(rows), "no record has a curve; `bdbench run --curves` makes them")
    frame = pd.DataFrame(rows)
    if form == "csv":
        write_atomically(path, as_csv(frame).encode())
        return
    file = io.BytesIO()
    frame.to_parquet(file, index=False)
    write_atomically(path, file.getvalue())


def _cell(record: Record) -> dict[str, Any]:
    return {
        "key": record.key,
        **{axis: record.labels[axis] for axis in AXES},
        "seed": record.cell["seed"],
    }


def _row(record: Record) -> dict[str, Any]:
    row = {**_cell(record), "status": record.status}
    for metric in METRICS:
        count = (record.metrics or {}).get(metric)
        row |= {
            metric: count.rate if count else float("nan"),
            f"{metric}_hits": count.hits if count else float("nan"),
            f"{metric}_of": count.of if count else float("nan"),
        }
    seconds = {f"seconds_{stage}": float(n) for stage, n in record.measured["seconds"].items()}
    return {**row, **seconds, "flags": " ".join(record.flags)}


def _points(record: Record) -> Iterator[dict[str, Any]]:
    for point in record.curves:
        shares = {name: float("nan") if n is None else n for name, n in point.items()}
        yield {**_cell(record), **shares}

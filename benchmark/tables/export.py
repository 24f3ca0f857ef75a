"""Records as flat tables for other programs: one row per cell, or one per epoch."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bdbench.models.plugins.errors import one_line, one_of, require
from bdbench.records.count import Count
from bdbench.records.record import METRICS, SPECS, STAGES, Record
from bdbench.storage.atomic import write_atomically
from bdbench.tables.groups import clean_fraction, seconds_own, seconds_total, trainings
from bdbench.tables.text import as_csv

FORMS = ("csv", "parquet")
TEXT, WHOLE, REAL, FLAG = "string", "Int64", "float64", "boolean"
LARGEST_INTEGER = 2**63 - 1
"""The largest value of an integer column; a column with a larger one holds floats."""
POINTS = ("clean_accuracy", "attack_success_rate", "robust_accuracy", "asr_floor")
"""The metrics of a curve that come first, in this order."""


def write(records: Sequence[Record], path: Path, form: str, epochs: bool) -> None:
    """Write the rows of `frame` as CSV or Parquet, atomically.

    CSV has six significant digits, and text that a spreadsheet would run as a formula is escaped.
    Raises `InvalidInput` for an unknown format, for nothing to write and for an unwritable folder.
    """
    one_of(FORMS, format=form)
    require(bool(records), "there are no records to export; create some with `bdbench run`")
    table = frame(records, epochs)
    require(len(table) > 0, "no record has curves; record them with `bdbench run --curves`")
    if form == "csv":
        content = as_csv(table).encode()
    else:
        buffer = io.BytesIO()
        table.to_parquet(buffer, index=False)
        content = buffer.getvalue()
    write_atomically(path, content)


def frame(records: Iterable[Record], epochs: bool = False) -> pd.DataFrame:
    """The table of `rows` with typed columns: text, integers, floats or booleans.

    A setting that is a number in some specs and text in others becomes text; so do lists and
    tuples, written as in a spec.
    """
    found = rows(records, epochs)
    known = {**_CELL, **(_EPOCH if epochs else _RESULT)}
    names = list(dict.fromkeys(name for row in found for name in row)) or list(known)
    columns = {name: [row.get(name) for row in found] for name in names}
    kinds = {name: _kind(values, known.get(name)) for name, values in columns.items()}
    texts = {n: list(map(_text, columns[n])) for n, kind in kinds.items() if kind == TEXT}
    return pd.DataFrame(columns | texts, dtype=object).astype(kinds)


def rows(records: Iterable[Record], epochs: bool = False) -> list[dict[str, Any]]:
    """One row per record, or one per epoch of each curve, None where a record has no value.

    All rows have the same columns. Their order does not depend on that of the records.

    dataset, model, attack, defense, recipe: labels; with `_spec`, complete specs
    attack.poisoning_rate and so on: the fields of these specs
    clean_accuracy and so on: shares in [0, 1]; `_low`, `_high`: their 95 % Wilson interval;
        `_hits`, `_of`: their counts
    seconds, seconds_own: training time with and without the undefended network
    seconds_fit and so on: time by stage
    """
    records = list(records)
    fields = _fields(records)
    more = sorted({name for r in records if r.metrics for name, _ in r.metrics} - {*METRICS})
    libraries = sorted({name for r in records for name in _names(r.provenance.versions)})
    points = sorted({name for r in records for p in r.points for name in _names(p)})
    points = [*POINTS, *(name for name in points if name not in (*POINTS, "epoch"))]
    found = []
    for record in records:
        cell = {**_cell(record), **_settings(record, fields)}
        if epochs:
            found += [
                {**cell, "epoch": point["epoch"], **{name: point.get(name) for name in points}}
                for point in record.points
            ]
        else:
            found.append({**cell, **_result(record, (*METRICS, *more), libraries)})
    return found


def _cell(record: Record) -> dict[str, Any]:
    return {
        "key": record.key,
        **{axis: record.labels[axis] for axis in SPECS},
        "seed": record.cell.seed,
        "status": record.status,
        **{f"{axis}_spec": str(record.cell[axis]) for axis in SPECS},
    }


def _result(record: Record, metrics: Sequence[str], libraries: Sequence[str]) -> dict[str, Any]:
    shares = {
        f"{metric}{part}": value
        for metric in metrics
        for part, value in _share(record.count(metric)).items()
    }
    measured, origin = record.measured, record.provenance
    return {
        **shares,
        "seconds": seconds_total(record),
        "seconds_own": seconds_own(record),
        **{f"seconds_{stage}": measured.seconds[stage] for stage in STAGES},
        **{f"passes_{way}": record.passes[way] for way in ("forward", "backward")},
        "trainings": _number(trainings(record)),
        "clean_fraction": _number(clean_fraction(record)),
        "flags": " ".join(record.flags),
        **{name: measured[name] for name in _MEASURED},
        **{name: origin[name] for name in _PROVENANCE},
        **{f"version.{name}": origin.versions.get(name) for name in libraries},
        **{f"plugin_version.{axis}": _text(record.versions.get(axis)) for axis in SPECS[:4]},
        "error_type": record.error and record.error.type,
        "error": record.error and one_line(record.error.message),
    }


PARTS: dict[str, tuple[str, Callable[[Count], Any]]] = {
    "": (REAL, lambda count: count.rate),
    "_hits": (WHOLE, lambda count: count.hits),
    "_of": (WHOLE, lambda count: count.of),
    "_low": (REAL, lambda count: count.interval[0]),
    "_high": (REAL, lambda count: count.interval[1]),
}
_MEASURED = {
    "peak_memory_bytes": WHOLE,
    "images": REAL,
    "images_per_second": REAL,
    "others": REAL,
    "resumed": WHOLE,
    "isolated": FLAG,
    "started": TEXT,
    "ended": TEXT,
}
_PROVENANCE = {
    "device": TEXT,
    "precision": TEXT,
    "threads": WHOLE,
    "instructions": TEXT,
    "deterministic": FLAG,
    "commit": TEXT,
    "data_sha256": TEXT,
}
_CELL = {
    **dict.fromkeys(("key", *SPECS), TEXT),
    "seed": WHOLE,
    "status": TEXT,
    **{f"{axis}_spec": TEXT for axis in SPECS},
}
_EPOCH = {"epoch": WHOLE, **dict.fromkeys(POINTS, REAL)}
_RESULT = {
    **{f"{metric}{part}": kind for metric in METRICS for part, (kind, _) in PARTS.items()},
    **dict.fromkeys(("seconds", "seconds_own"), REAL),
    **{f"seconds_{stage}": REAL for stage in STAGES},
    **dict.fromkeys(("passes_forward", "passes_backward", "trainings", "clean_fraction"), REAL),
    "flags": TEXT,
    **_MEASURED,
    **_PROVENANCE,
    **{f"plugin_version.{axis}": TEXT for axis in SPECS[:4]},
    "error_type": TEXT,
    "error": TEXT,
}
"""The types of the columns that every record has."""


def _share(count: Count | None) -> dict[str, Any]:
    return {part: count and value(count) for part, (_, value) in PARTS.items()}


def _fields(records: Iterable[Record]) -> dict[str, list[str]]:
    """By axis, the sorted names of all fields in the specs."""
    found: dict[str, set[str]] = {axis: set() for axis in SPECS}
    for axis, spec in {(axis, record.cell[axis]) for record in records for axis in SPECS}:
        found[axis] |= set(spec.fields)
    return {axis: sorted(names) for axis, names in found.items()}


def _settings(record: Record, fields: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    given = {axis: record.cell[axis].fields for axis in SPECS}
    return {f"{axis}.{name}": given[axis].get(name) for axis in SPECS for name in fields[axis]}


def _names(found: Iterable[str]) -> list[str]:
    """The keys of a part of a record that can name a column."""
    return [name for name in found if name.isidentifier()]


def _kind(values: Sequence[Any], known: str | None) -> str:
    """The type of a column: the known one, or one that fits all of its values."""
    given = [value for value in values if value is not None]
    kind = known or _common({type(value) for value in given})
    return REAL if kind == WHOLE and any(abs(each) > LARGEST_INTEGER for each in given) else kind


def _common(types: set[type]) -> str:
    if types == {bool}:
        return FLAG
    if types == {int}:
        return WHOLE
    return REAL if types <= {int, float} else TEXT


def _text(value: Any) -> str | None:
    """With escapes for what is not Unicode, such as parts of the name of a file."""
    if value is None:
        return None
    text = value if isinstance(value, str) else repr(value)
    return text.encode(errors="backslashreplace").decode()


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value

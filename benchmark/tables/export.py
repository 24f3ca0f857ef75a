"""Records as rows of plain columns, for other programs: a row for each cell, or for each epoch."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bdbench.models.plugins.errors import InvalidInput, one_line, one_of, require
from bdbench.models.plugins.spec import Spec
from bdbench.records.count import Count
from bdbench.records.record import METRICS, STAGES, Record
from bdbench.storage.atomic import write_atomically
from bdbench.tables.groups import clean_fraction, seconds_own, seconds_total, trainings
from bdbench.tables.text import as_csv

FORMS = ("csv", "parquet")
AXES = ("dataset", "model", "attack", "defense", "recipe")
TEXT, WHOLE, REAL, FLAG = "string", "Int64", "float64", "boolean"
LARGEST = 2**63 - 1
"""A whole number of more has no type of its own in a column."""
POINTS = ("clean_accuracy", "attack_success_rate", "robust_accuracy", "asr_floor")
"""Of a curve, in this order before all others."""


def write(records: Sequence[Record], path: Path, form: str, epochs: bool) -> None:
    """Write the rows of `frame` as CSV or Parquet, whole or not at all.

    In CSV numbers have six significant digits, and no text is a formula to a spreadsheet.
    Raises `InvalidInput` for another form, for nothing to write, and for an unwritable folder.
    """
    one_of(FORMS, format=form)
    require(bool(records), "there are no records to export; `bdbench run` makes them")
    table = frame(records, epochs)
    require(len(table) > 0, "no record has a curve to export; `bdbench run --curves` makes them")
    if form == "csv":
        content = as_csv(table).encode()
    else:
        buffer = io.BytesIO()
        table.to_parquet(buffer, index=False)
        content = buffer.getvalue()
    write_atomically(path, content)


def frame(records: Iterable[Record], epochs: bool = False) -> pd.DataFrame:
    """The same as `rows`, a column of each type: text, whole numbers, numbers, yes or no.

    A setting that is a number in some specs and a text in others is text throughout; so is one that
    is a list or a tuple, as it is written in a spec.
    """
    found = rows(records, epochs)
    known = {**_CELL, **(_EPOCH if epochs else _RESULT)}
    names = list(dict.fromkeys(name for row in found for name in row)) or list(known)
    columns = {name: [row.get(name) for row in found] for name in names}
    kinds = {name: _kind(values, known.get(name)) for name, values in columns.items()}
    texts = {n: list(map(_text, columns[n])) for n, kind in kinds.items() if kind == TEXT}
    return pd.DataFrame(columns | texts, dtype=object).astype(kinds)


def rows(records: Iterable[Record], epochs: bool = False) -> list[dict[str, Any]]:
    """A row for each record, or for each epoch of each curve; all have the same columns, in the
    same order whatever the order of the records, and None for what a record does not say.

    dataset, model, attack, defense, recipe: labels; with `_spec`, complete specs
    attack.poisoning_rate and its like: the fields of these specs
    metrics, and their ends `_low` and `_high` of Wilson's 95 % interval: shares in [0, 1]
    `_hits`, `_of`: the counts they are made of
    seconds, seconds_own: of a defense with and without the undefended networks; by stage, too
    """
    records = list(records)
    fields = _fields(records)
    more = sorted({name for r in records for name in _names(r.metrics or {})} - {*METRICS})
    libraries = sorted({name for r in records for name in _names(r.provenance.get("versions"))})
    points = sorted({name for r in records for p in r.curves for name in _names(p)})
    points = [*POINTS, *(name for name in points if name not in (*POINTS, "epoch"))]
    found = []
    for record in records:
        cell = {**_cell(record), **_settings(record, fields)}
        if epochs:
            found += [
                {**cell, "epoch": point["epoch"], **{name: point.get(name) for name in points}}
                for point in record.curves
            ]
        else:
            found.append({**cell, **_result(record, (*METRICS, *more), libraries)})
    return found


def _cell(record: Record) -> dict[str, Any]:
    return {
        "key": record.key,
        **{axis: record.labels[axis] for axis in AXES},
        "seed": record.cell["seed"],
        "status": record.status,
        **{f"{axis}_spec": record.cell[axis] for axis in AXES},
    }


def _result(record: Record, metrics: Sequence[str], libraries: Sequence[str]) -> dict[str, Any]:
    shares = {
        f"{metric}{part}": value
        for metric in metrics
        for part, value in _share((record.metrics or {}).get(metric)).items()
    }
    measured, origin = record.measured, record.provenance
    versions = origin.get("versions")
    known = versions if isinstance(versions, dict) else {}
    error = record.error or {}
    return {
        **shares,
        "seconds": seconds_total(record),
        "seconds_own": seconds_own(record),
        **{f"seconds_{stage}": measured["seconds"].get(stage) for stage in STAGES},
        **{f"passes_{way}": record.passes[way] for way in ("forward", "backward")},
        "trainings": _number(trainings(record)),
        "clean_fraction": _number(clean_fraction(record)),
        "flags": " ".join(record.flags),
        **{name: measured.get(name) for name in _MEASURED},
        **{name: _as(kind, origin.get(name)) for name, kind in _PROVENANCE.items()},
        **{f"version.{name}": _as(TEXT, known.get(name)) for name in libraries},
        **{f"plugin_version.{axis}": _text(record.versions.get(axis)) for axis in AXES[:4]},
        "error_type": error.get("type"),
        "error": one_line(error["message"]) if error else None,
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
    "deterministic": FLAG,
    "commit": TEXT,
    "data_sha256": TEXT,
}
_CELL = {
    **dict.fromkeys(("key", *AXES), TEXT),
    "seed": WHOLE,
    "status": TEXT,
    **{f"{axis}_spec": TEXT for axis in AXES},
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
    **{f"plugin_version.{axis}": TEXT for axis in AXES[:4]},
    "error_type": TEXT,
    "error": TEXT,
}
"""Types of the columns that all records have."""


def _share(count: Count | None) -> dict[str, Any]:
    return {part: count and value(count) for part, (_, value) in PARTS.items()}


def _fields(records: Iterable[Record]) -> dict[str, list[str]]:
    """The fields of the specs by axis, sorted."""
    found: dict[str, set[str]] = {axis: set() for axis in AXES}
    for spec in {(axis, record.cell[axis]) for record in records for axis in AXES}:
        found[spec[0]] |= set(_literals(spec[1]))
    return {axis: sorted(names) for axis, names in found.items()}


def _settings(record: Record, fields: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    given = {axis: _literals(record.cell[axis]) for axis in AXES}
    return {f"{axis}.{name}": given[axis].get(name) for axis in AXES for name in fields[axis]}


def _literals(text: str) -> Mapping[str, Any]:
    """The fields of a spec; none where a record has no spec that this version reads."""
    try:
        return Spec.of(text).fields
    except InvalidInput:
        return {}


def _names(found: Any) -> list[str]:
    """Keys of a part of a record that can name a column."""
    return [name for name in found if name.isidentifier()] if isinstance(found, dict) else []


def _kind(values: Sequence[Any], known: str | None) -> str:
    """The type of a column: the known one, or the one that its values have in common."""
    given = [value for value in values if value is not None]
    kind = known or _common({type(value) for value in given})
    return REAL if kind == WHOLE and any(abs(each) > LARGEST for each in given) else kind


def _common(types: set[type]) -> str:
    if types == {bool}:
        return FLAG
    if types == {int}:
        return WHOLE
    return REAL if types <= {int, float} else TEXT


def _as(kind: str, value: Any) -> Any:
    """A value of a part of a record that may hold anything; None where it is of another type."""
    wanted = {TEXT: str, WHOLE: int, FLAG: bool}[kind]
    return value if type(value) is wanted else None


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else repr(value)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value

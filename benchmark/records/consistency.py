"""Whether records may share a table: each cell and seed once, and all trained on the same data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from bdbench.models.plugins.errors import InvalidInput
from bdbench.records.record import Record

AXES = ("dataset", "model", "recipe", "attack", "defense")


def specs(record: Record) -> tuple[str, ...]:
    """The specs of its cell along `AXES`."""
    return tuple(str(record.cell[axis]) for axis in AXES)


def consistent(records: Iterable[Record]) -> list[Record]:
    """The records, sorted along `AXES` and by seed.

    Raises `InvalidInput` where two are of one cell and seed, or where records of one data set,
    model and recipe were trained on different data.
    """
    ordered = sorted(records, key=lambda r: (*specs(r), r.cell.seed, r.key))
    # First the data: two records of one cell differ in them where a user's folder has changed.
    _refuse_mixed_data(ordered)
    _refuse_duplicates(ordered)
    return ordered


def _refuse_duplicates(ordered: Sequence[Record]) -> None:
    for one, two in pairwise(ordered):
        if one.cell == two.cell:
            raise InvalidInput(
                f"records {one.key} and {two.key} are both of {_title(one)} with seed "
                f"{one.cell.seed}; remove one of them"
            )


def _refuse_mixed_data(ordered: Sequence[Record]) -> None:
    known: dict[tuple[str, ...], tuple[str, Record]] = {}
    for record in ordered:
        data = record.provenance.data_sha256
        if not data:
            continue
        first, other = known.setdefault(specs(record)[:3], (data, record))
        if first != data:
            raise InvalidInput(
                f"records {other.key} ({_title(other)}, data {first:.12}) and {record.key} "
                f"({_title(record)}, data {data:.12}) were trained on different data and cannot "
                "share a table; give each its own folder with --results"
            )


def _title(record: Record) -> str:
    return f"{record.labels.defense} on {record.labels.attack}"

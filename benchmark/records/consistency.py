"""Whether records may stand side by side: each cell and seed once, and one kind of data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from bdbench.models.plugins.errors import InvalidInput
from bdbench.records.record import Record

AXES = ("dataset", "model", "recipe", "attack", "defense")


def consistent(records: Iterable[Record]) -> list[Record]:
    """The records, sorted along `AXES` and by seed.

    Raises `InvalidInput` where two are of one cell and seed, or where records of one data set,
    model and recipe were trained on different data.
    """
    ordered = sorted(records, key=lambda r: (*(r.cell[a] for a in AXES), r.cell["seed"], r.key))
    # Also of one cell, where a user's folder has changed: then that is what is to be said.
    _refuse_mixed_data(ordered)
    _refuse_duplicates(ordered)
    return ordered


def _refuse_duplicates(ordered: Sequence[Record]) -> None:
    for one, two in pairwise(ordered):
        if one.cell == two.cell:
            raise InvalidInput(
                f"records {one.key} and {two.key} are both of {_title(one)} with seed "
                f"{one.cell['seed']}; remove one of them"
            )


def _refuse_mixed_data(ordered: Sequence[Record]) -> None:
    known: dict[tuple[str, ...], tuple[str, Record]] = {}
    for record in ordered:
        data = str(record.provenance.get("data_sha256") or "")
        if not data:
            continue
        first, other = known.setdefault(tuple(record.cell[a] for a in AXES[:3]), (data, record))
        if first != data:
            raise InvalidInput(
                f"records {other.key} ({_title(other)}, data {first:.12}) and {record.key} "
                f"({_title(record)}, data {data:.12}) were trained on different data and cannot "
                "share a table; put them into folders of their own with --results"
            )


def _title(record: Record) -> str:
    return f"{record.labels['defense']} on {record.labels['attack']}"

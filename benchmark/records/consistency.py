"""Whether records may share a table: each cell and seed once, on the same data, of one version."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from bdbench.models.plugins.errors import InvalidInput
from bdbench.records.record import Record

AXES = ("dataset", "model", "recipe", "attack", "defense")


def specs(record: Record) -> tuple[str, ...]:
    """The specs of its cell along `AXES`."""
    return tuple(str(record.cell[axis]) for axis in AXES)


def consistent(records: Iterable[Record]) -> list[Record]:
    """The records, sorted along `AXES` and by seed.

    Raises `InvalidInput` where two are of one cell and seed, or where records of one data set,
    model and recipe were trained on different data or state different versions of one plugin.
    """
    ordered = sorted(records, key=lambda r: (*specs(r), r.cell.seed, r.key))
    # First why two records of one cell exist: a user's folder or the version of a plugin changed.
    _refuse_mixed_data(ordered)
    _refuse_mixed_versions(ordered)
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
    stated = ((specs(r)[:3], r.provenance.data_sha256, r) for r in ordered)
    if pair := _contradiction(each for each in stated if each[1]):
        (first, other), (data, record) = pair
        raise InvalidInput(
            f"records {other.key} ({_title(other)}, data {first:.12}) and {record.key} "
            f"({_title(record)}, data {data:.12}) were trained on different data and cannot "
            "share a table; give each its own folder with --results"
        )


def _refuse_mixed_versions(ordered: Sequence[Record]) -> None:
    """Records that do not state the versions of their plugins are older, and not judged."""
    for axis in AXES:
        known = [r for r in ordered if axis in r.versions]
        wholes = (((*specs(r)[:3], str(r.cell[axis])), r.versions[axis], r) for r in known)
        # Also where settings differ, as in a sweep; a hash stands for the whole code of a notebook.
        plugins = (
            ((*specs(r)[:3], r.cell[axis].name), own, r)
            for r in known
            if isinstance(own := own_version(r.versions[axis]), int)
        )
        if pair := _contradiction(wholes) or _contradiction(plugins):
            (first, other), (version, record) = pair
            noun = "data set" if axis == "dataset" else axis
            raise InvalidInput(
                f"records {other.key} ({_title(other)}, version {_shown(first)}) and {record.key} "
                f"({_title(record)}, version {_shown(version)}) are of different versions of the "
                f"{noun} {record.labels[axis]} and cannot share a table; remove those of one "
                "version, or give each its own folder with --results"
            )


def own_version(stated: Any) -> Any:
    """The version of a plugin itself, without those of the plugins and files that it holds."""
    return stated[0] if isinstance(stated, list) else stated


Stated = tuple[Any, Record]
"""A value that a record states."""


def _contradiction(
    stated: Iterable[tuple[tuple[str, ...], Any, Record]],
) -> tuple[Stated, Stated] | None:
    """The first two values that differ in one place; None if all agree.

    stated: place, value and record
    """
    known: dict[tuple[str, ...], Stated] = {}
    for place, value, record in stated:
        first = known.setdefault(place, (value, record))
        if first[0] != value:
            return first, (value, record)
    return None


def _shown(version: Any) -> str:
    """A version in a message: a number, or the beginning of a hash, or several of these."""
    if isinstance(version, list):
        return " and ".join(map(_shown, version))
    return f"{version:.12}" if isinstance(version, str) else str(version)


def _title(record: Record) -> str:
    return f"{record.labels.defense} on {record.labels.attack}"

"""Whether records may share a table: each cell and seed once, on the same data, of one version."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from bdbench.models.plugins.errors import InvalidInput
from bdbench.records.parts import Identity
from bdbench.records.record import Record

AXES = ("dataset", "model", "recipe", "attack", "defense")
"""The parts of a cell in the order by which tables group cells; see `SPECS` for the other one."""
Known = tuple[Mapping[str, Any], Mapping[str, Any]]
"""A cell: its specs and seed, and the versions of its plugins, which may be empty."""


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
        stated = (
            (place, version, record)
            for record in ordered
            for place, version in _versions(record.cell, record.versions, axis)
        )
        if pair := _contradiction(stated):
            (first, other), (version, record) = pair
            raise InvalidInput(
                f"records {other.key} ({_title(other)}, version {_shown(first)}) and {record.key} "
                f"({_title(record)}, version {_shown(version)}) are of different versions of the "
                f"{_noun(axis)} {record.labels[axis]} and cannot share a table; remove those of "
                "one version, or give each its own folder with --results"
            )


def refuse_versions(records: Iterable[Record], asked: Iterable[Known], folder: Path) -> None:
    """Raises `InvalidInput` if plugins of the records of a folder have other versions than those of
    the cells that are asked for: after the run, they could not share a table."""
    now = {
        (axis, *place): version
        for cell, versions in asked
        for axis in AXES
        for place, version in _versions(Identity(**cell), versions, axis)
    }
    other = [
        (record, axis, version, now[axis, *place])
        for record in records
        for axis in AXES
        for place, version in _versions(record.cell, record.versions, axis)
        if now.get((axis, *place), version) != version
    ]
    if other:
        record, axis, version, current = other[0]
        keys = sorted({each.key for each, *_ in other})
        more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
        plugin = f"the {_noun(axis)} {record.labels[axis]}"
        if own_version(version) == own_version(current):
            differ = f"was made with other files of {plugin} than the cells to run would be"
        else:
            differ = f"is of version {_shown(version)} of {plugin}, the cells to run are of "
            differ += f"version {_shown(current)}"
        raise InvalidInput(
            f"record {record.key} ({_title(record)}){more} in {folder} {differ}, so they could not "
            "share a table: remove the old records, or name another folder with --results"
        )


def _versions(
    cell: Identity, stated: Mapping[str, Any], axis: str
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """What may have one version only, and that version: the plugin with these settings and all that
    it holds, and the plugin itself, whatever its settings, as in a sweep."""
    if axis in stated:
        setting = tuple(str(cell[each]) for each in AXES[:3])
        yield (*setting, str(cell[axis])), stated[axis]
        # A hash stands for the whole code of a notebook.
        if isinstance(own := own_version(stated[axis]), int):
            yield (*setting, cell[axis].name, "itself"), own


def _noun(axis: str) -> str:
    return "data set" if axis == "dataset" else axis


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

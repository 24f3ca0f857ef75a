"""`bdbench merge`: the records of several folders in one."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

from bdbench.models.plugins.errors import InvalidInput, require
from bdbench.records.claims import claimed
from bdbench.records.consistency import consistent
from bdbench.records.files import network_of, path_of, read, read_all, write
from bdbench.records.record import Record
from bdbench.storage.atomic import Unusable


def merge(folders: Sequence[Path], into: Path) -> tuple[list[str], bool]:
    """Write to `into` the records of all folders, its own included.

    Of several records of one cell, the first that did not fail is kept, or one that agrees with it
    and adds a P-ASR or curves; those of `into` come first, then those of the folders in their
    order. Only what is added is written, as a run may be writing there. Saved networks stay where
    they are.

    Returns lines that say what was done, and whether all records could be read and added. Raises
    `InvalidInput`, before anything is written, for a folder without records, for records of another
    version, and for records that are not `consistent`.
    """
    kept: dict[str, Record] = {}
    added: dict[str, Record] = {}
    lines: list[str] = []
    whole = True
    for folder in dict.fromkeys([into, *folders]):
        records, damaged = read_all(folder)
        require(folder == into or bool(records), f"no records in {folder / 'records'}")
        whole = whole and not damaged
        lines += [f"{line}; left out" for line in damaged]
        taken = 0
        for record in records:
            other = kept.get(record.key)
            if other is None or _better(record, other):
                kept[record.key] = record
                taken += 1
                if folder != into:
                    added[record.key] = record
            elif other.contradicts(record):
                lines.append(f"{folder}: {record.key} has another result; the first is kept")
            elif lost := sorted(_extras(record) - _extras(other)):
                what = " and ".join(lost)
                lines.append(f"{folder}: {record.key} has {what}, which the one that is kept lacks")
        if folder != into or records:
            lines.append(f"{folder}: {taken} of {len(records)} records taken")
        networks = sum(network_of(folder, record.key).exists() for record in records)
        if folder != into and networks:
            lines.append(f"{folder}: {networks} saved network{'s' * (networks > 1)} not copied")
    consistent(kept.values())
    # Writing waits for the disk, so threads speed it up.
    with ThreadPoolExecutor(8) as pool:
        left = [line for line in pool.map(partial(_add, into), added.values()) if line]
    there = sum(path_of(into, key).exists() for key in kept)
    lines += [*left, f"{into}: {there} records"]
    return lines, whole and not left


def _add(into: Path, record: Record) -> str:
    """Write a record, or say why not: a run is at its cell, or has just ended with one that is as
    good."""
    with ExitStack() as opened:
        # Where files cannot be locked, no run is at work.
        with suppress(Unusable):
            if not opened.enter_context(claimed(into, record.key)):
                return f"{into}: a run is working on {record.key}; merge again when it has ended"
        try:
            if not _better(record, read(path_of(into, record.key))):
                return f"{into}: a run has just written {record.key}, which is kept"
        except Unusable as error:
            return f"{error}; it is kept"
        except InvalidInput:
            pass  # it is missing or damaged
        write(into, record)
        return ""


def _better(record: Record, other: Record) -> bool:
    """Whether a record takes the place of an earlier one of the same cell."""
    if "failed" in (record.status, other.status):
        return (other.status, record.status) == ("failed", "ok")
    # A network that is stored beside the earlier one must stay that of its record.
    hashes = {each.provenance.network_sha256 for each in (record, other)} - {None}
    same = len(hashes) < 2 and not record.contradicts(other)
    return same and _extras(record) > _extras(other)


def _extras(record: Record) -> set[str]:
    """What only some runs of a cell measure."""
    found = {"a P-ASR": record.is_reactivated, "curves": bool(record.curves)}
    return {name for name, has in found.items() if has}

"""The record of a cell, put together from its parts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from types import MappingProxyType
from typing import Any

import torch

from bdbench.cells.cell import Cell
from bdbench.records.files import content
from bdbench.records.record import LATER_STAGES, SCHEMA, STAGES, Record
from bdbench.trial import provenance
from bdbench.trial.failure import InvalidResults, error_of


def record_of(
    cell: Cell, origin: dict[str, Any], measured: dict[str, Any], results: dict[str, Any]
) -> Record:
    """The record of a cell. Results that a record cannot hold, or whose parts contradict each
    other, make a failed one: a plugin may have replaced what computes them.

    origin: provenance
    measured: see `measured_of`
    results: all other fields but those that name the cell
    """
    named = partial(
        Record,
        schema=SCHEMA,
        key=cell.key,
        cell=cell.identity,
        labels=cell.labels,
        versions=cell.versions,
        plugins=provenance.descriptions(cell),
        provenance=origin,
        measured=measured,
    )
    try:
        record = named(**results)
        content(record)
    except (TypeError, ValueError) as error:
        return named(**failure_of(InvalidResults(f"the results are not those of a cell: {error}")))
    return record


def failed_record(
    cell: Cell,
    device: torch.device,
    error: BaseException,
    retries: Sequence[str],
    isolated: bool = True,
    started: datetime | None = None,
) -> Record:
    """The record of a cell whose trial did not start, or whose workers died.

    started: the first attempt; now by default
    """
    origin = provenance.of(cell, device, None)
    measured = measured_of(started or datetime.now(UTC), retries, isolated=isolated)
    return record_of(cell, origin, measured, failure_of(error))


def failure_of(error: BaseException) -> dict[str, Any]:
    """The results of a cell that failed."""
    return {
        "status": "failed",
        "metrics": None,
        "passes": {"forward": 0.0, "backward": 0.0},
        "flags": (),
        "curves": [],
        "diagnostics": {},
        "error": error_of(error),
    }


def measured_of(
    started: datetime,
    retries: Sequence[str],
    *,
    seconds: Mapping[str, float] = MappingProxyType({}),
    memory: int = 0,
    work: int = 0,
    others: float | None = None,
    resumed: int = 0,
    isolated: bool = True,
) -> dict[str, Any]:
    """What another run of the cell would measure differently, see `Record.measured`.

    work: forward passes of one image; a backward pass counts two
    """
    stages = [*STAGES, *(stage for stage in LATER_STAGES if stage in seconds)]
    spent = {stage: round(seconds.get(stage, 0.0), 6) for stage in stages}
    busy = spent["undefended"] + spent["fit"]
    return {
        "seconds": spent,
        "peak_memory_bytes": memory,
        "images": round(work / 3),
        "images_per_second": round(work / 3 / busy, 1) if busy else 0.0,
        "others": None if others is None else round(others, 3),
        "resumed": resumed,
        "isolated": isolated,
        "retries": list(retries),
        "started": started.isoformat(timespec="seconds"),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
    }


NO_NUMBER = (TypeError, ValueError, RuntimeError, OverflowError)
"""What conversions to numbers raise."""


def numbers_in(given: Mapping[str, Any], where: str) -> tuple[dict[str, float], list[str]]:
    """What a plugin says of itself, as floats, and a line for each value that is none: it must not
    cost the work that it is about.

    where: as in "in the journal"
    """
    numbers, lines = {}, []
    for name, value in given.items():
        try:
            numbers[str(name)] = float(value)
        except NO_NUMBER:
            lines.append(f"{str(name)!r} {where} is left out: it is not a number")
    return numbers, lines


def finite(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """The same numbers as JSON can hold them: None in place of nan and infinity."""
    return {name: float(n) if math.isfinite(n) else None for name, n in numbers.items()}

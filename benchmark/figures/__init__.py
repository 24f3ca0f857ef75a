"""Figures are pure functions of records, and of what the cache keeps beside them. None trains.

The same records give the same bytes. Each figure is a module here with a function `draw`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bdbench.figures.picture import FORMATS as FORMATS
from bdbench.figures.picture import Picture, look
from bdbench.figures.selection import Selection, select
from bdbench.models.plugins import spec
from bdbench.models.plugins.errors import require
from bdbench.records.record import Record

FIGURES = ("curves", "losses", "pareto", "plane", "sweep", "triggers", "tsne")


def make(
    which: str,
    records: Sequence[Record],
    results: Path,
    wanted: Mapping[str, Sequence[str]],
    formats: Sequence[str] = FORMATS,
    data: Path | None = None,
    field: str = "",
) -> list[str]:
    """Draw one of `FIGURES` into `<results>/figures`, with its data as CSV. Returns lines to print.

    wanted: specs by axis, where not everything in the records is to be drawn
    data: where data sets lie, for `triggers`
    field: against which `sweep` draws, where several are swept

    Raises `InvalidInput` for names that are unknown, for records that do not suffice, with the
    command that makes them, and for an unwritable folder.
    """
    require(which in FIGURES, f"unknown figure {which!r}{spec.did_you_mean(which, FIGURES)}")
    for each in formats:
        require(each in FORMATS, f"unknown format {each!r}{spec.did_you_mean(each, FORMATS)}")
    module = importlib.import_module(f"bdbench.figures.{which}")
    draw: Callable[[Selection], Picture] = module.draw
    require(not field or which == "sweep", "--field is for the figure sweep")
    selection = select(records, results, wanted, data, field)
    with look():
        picture = draw(selection)
        paths = picture.write(results / "figures", which, formats)
    return [*picture.remarks, *map(str, paths)]

"""Figures, which are pure functions of records and of cached embeddings. Drawing never trains.

The same records give the same bytes. Each figure is a module here with a function `draw`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bdbench.figures.picture import FORMATS as FORMATS
from bdbench.figures.picture import Picture, look
from bdbench.models.plugins import spec
from bdbench.models.plugins.errors import require
from bdbench.records.record import Record
from bdbench.tables.selection import Selection, select

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
    """Draw one of `FIGURES` into `<results>/figures`, with its data as CSV.

    wanted: specs by axis that select the cells to draw; all cells if empty. The files of a
        selection, and of a field that is swept, have names of their own.
    data: folder of data sets, for `triggers`
    field: the field on the horizontal axis of `sweep`, if several are swept

    Returns lines to print: remarks, then paths. Raises `InvalidInput` for an unknown name, for
    missing records, with the command that creates them, and for an unwritable folder.
    """
    require(which in FIGURES, f"unknown figure {which!r}{spec.did_you_mean(which, FIGURES)}")
    for each in formats:
        require(each in FORMATS, f"unknown format {each!r}{spec.did_you_mean(each, FORMATS)}")
    module = importlib.import_module(f"bdbench.figures.{which}")
    draw: Callable[[Selection], Picture] = module.draw
    require(not field or which == "sweep", "--field applies only to the figure sweep")
    selection = select(records, results, wanted, data, field)
    with look():
        picture = draw(selection)
        name = "-".join(filter(None, (which, picture.subject)))
        paths = picture.write(results / "figures", f"{name}{selection.ending}", formats)
    return [*picture.remarks, *map(str, paths)]

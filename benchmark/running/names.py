"""Names of cells in the lines of a run: what all cells share is printed once."""

from __future__ import annotations

from collections.abc import Iterable
from textwrap import wrap

from bdbench.cells.cell import Cell
from bdbench.running.progress import COLUMNS

AXES = ("dataset", "model", "attack", "defense")
ALONE = ["attack", "defense"]
"""The name of a single cell."""


class Names:
    """Names cells by the parts in which they differ."""

    def __init__(self, cells: Iterable[Cell]) -> None:
        named = [_parts(cell) for cell in cells]
        values = {part: {parts[part] for parts in named} for part in (*AXES, "seed")}
        self._differing = [part for part, found in values.items() if len(found) > 1] or ALONE
        same = [found for part, found in values.items() if part not in self._differing]
        self._same = [text for found in same for text in found]

    def of(self, cell: Cell) -> list[str]:
        """The parts of a cell's name that differ between cells; attack and defense if none do."""
        parts = _parts(cell)
        return [parts[part] for part in self._differing]

    @property
    def common(self) -> list[str]:
        """Lines with the parts that all cells share, if any."""
        text = f"all cells: {' · '.join(self._same)}"
        return wrap(text, COLUMNS, subsequent_indent="  ") if self._same else []


def whole(cell: Cell) -> list[str]:
    """All parts of a cell's name."""
    return list(_parts(cell).values())


def _parts(cell: Cell) -> dict[str, str]:
    return {axis: cell.labels[axis] for axis in AXES} | {"seed": f"seed {cell.seed}"}

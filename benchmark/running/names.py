"""Names of cells in the lines of a run: what all cells share is printed once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from textwrap import wrap
from typing import Any

from bdbench.cells.cell import Cell
from bdbench.models.plugins.spec import Spec
from bdbench.running.progress import COLUMNS

PLUGINS = ("dataset", "model", "attack", "defense")
ALONE = ["attack", "defense"]
"""The name of a single cell."""


class Names:
    """Names cells by the parts in which they differ.

    Recipes differ between data sets anyway, so that of a cell is named only if another cell is like
    it but for the recipe.
    """

    def __init__(self, cells: Iterable[Cell]) -> None:
        cells = list(dict.fromkeys(cells))
        named = [_parts(cell) for cell in cells]
        values = {part: {parts[part] for parts in named} for part in (*PLUGINS, "seed")}
        self._differing = [part for part, found in values.items() if len(found) > 1] or ALONE
        same = [found for part, found in values.items() if part not in self._differing]
        self._same = [text for found in same for text in found]
        if len({cell.specs["recipe"] for cell in cells}) == 1:
            self._same += _recipe_label(cells[0])
        self._swept: list[str] = []
        if len({*map(tuple, map(self.of, cells))}) < len(cells):
            self._swept = _swept(list(map(_recipe, cells)))

    def of(self, cell: Cell) -> list[str]:
        """The parts of a cell's name that differ between cells; attack and defense if none do."""
        parts, recipe = _parts(cell), _recipe(cell)
        swept = {field: recipe[field] for field in self._swept if field in recipe}
        shown = [str(Spec("recipe", swept))] if swept else []
        return [*(parts[part] for part in self._differing), *shown]

    @property
    def common(self) -> list[str]:
        """Lines with the parts that all cells share, if any."""
        text = f"all cells: {' · '.join(self._same)}"
        return wrap(text, COLUMNS, subsequent_indent="  ") if self._same else []


def whole(cell: Cell) -> list[str]:
    """All parts of a cell's name."""
    return list(_parts(cell).values())


def _recipe(cell: Cell) -> Mapping[str, Any]:
    return Spec.of(cell.specs["recipe"]).fields


def _recipe_label(cell: Cell) -> list[str]:
    """Epochs, and what else differs from the default recipe; the precision depends on the
    device."""
    count = cell.recipe.epochs
    changed = Spec.of(cell.labels["recipe"]).fields
    others = {name: changed[name] for name in changed if name not in ("epochs", "precision")}
    rest = [str(Spec("recipe", others))] if others else []
    return [f"{count} epoch{'s' * (count != 1)}", *rest]


def _swept(recipes: Sequence[Mapping[str, Any]]) -> list[str]:
    """The fields in which recipes differ."""
    every = dict.fromkeys(field for recipe in recipes for field in recipe)
    return [field for field in every if len({repr(each.get(field)) for each in recipes}) > 1]


def _parts(cell: Cell) -> dict[str, str]:
    return {axis: cell.labels[axis] for axis in PLUGINS} | {"seed": f"seed {cell.seed}"}

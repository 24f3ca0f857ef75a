"""Mean training loss of clean and of poisoned images by epoch (CBD paper, figure 4).

A column of panels for each attack. Plain attacks come first, below them those that the adaptive
attack adds its noise to. CBD stops f_B after T1 epochs, when poisoned images are fitted and clean
ones are not yet.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from bdbench.figures.epochs import BAND, by_epoch, draw_line, with_curves
from bdbench.figures.picture import COLOURS, Picture, Place, caption, grid, legend
from bdbench.figures.selection import SETTING, Selection, agrees
from bdbench.models.plugins.spec import Spec
from bdbench.tables.groups import Group, is_none

LOOKS: dict[str, dict[str, Any]] = {
    "clean": {"color": COLOURS[1], "linestyle": "-"},
    "poisoned": {"color": COLOURS[2], "linestyle": "--"},
}
VALUES = [f"{kind}_loss" for kind in LOOKS]


def draw(selection: Selection) -> Picture:
    """No defense unless others are asked for. A dotted line is T1 of a CBD in the same folder."""
    groups = selection.groups
    if not selection.wanted.get("defense"):
        groups = [group for group in groups if is_none(group.names["defense"])]
    groups = with_curves(selection, groups, VALUES[0])
    if not selection.wanted.get("attack"):
        groups = [g for g in groups if not is_none(g.names["attack"])] or groups
    tables = {_place(group, groups): by_epoch([group], VALUES) for group in groups}
    data = pd.concat(tables.values(), ignore_index=True)
    rows = {row: f"training loss{row}" for row, _ in sorted(tables, key=lambda place: place[0])}
    figure, panels = grid(tables, rows, height=1.3, below="epoch")
    top = 1.1 * float(np.nanmax(data[[f"{value}_high" for value in VALUES]]))
    stops = _stops(selection, groups[0])
    for place, table in tables.items():
        axes = panels[place]
        axes.set_ylim(0, top)
        for value, look in zip(VALUES, LOOKS.values(), strict=True):
            draw_line(axes, table, value, 1, look)
        for stop in stops:
            axes.axvline(stop, color="#333333", linestyle=":", linewidth=0.8)
            axes.text(stop, top, f" T1 = {stop}", va="top", fontsize=6.5, color="#333333")
    legend(figure, {f"{kind} images": look for kind, look in LOOKS.items()})
    caption(figure, groups, *[BAND] * bool((data["seeds"] > 1).any()))
    return Picture(figure, data)


def _place(group: Group, groups: list[Group]) -> Place:
    """Row and column: the defense, and the attack. One that holds another stands below that, and
    what it adds is in the name of the row; rows that sort first are the plain ones."""
    defense, attack = group.names["defense"], group.names["attack"]
    held = Spec.of(group.records[0].cell["attack"]).fields.get("attack")
    added, column = [], attack
    if held is not None:
        outer = Spec.of(attack)
        settings = dict(outer.fields)
        shown = settings.pop("attack", Spec.of(held).name)
        added = [str(Spec(outer.name, settings))]
        plain = (g.names["attack"] for g in groups if agrees(held, g.records[0].cell["attack"]))
        column = next(plain, shown)
    parts = [*added, *[defense] * (not is_none(defense))]
    return "".join(f"\n{part}" for part in parts), column


def _stops(selection: Selection, group: Group) -> list[int]:
    """T1 of every CBD that was trained as this group was, epochs."""
    same = [g for g in selection.every if all(g.names[a] == group.names[a] for a in SETTING)]
    fields = (Spec.of(g.records[0].cell["defense"]).fields for g in same)
    return sorted({settings["t1"] for settings in fields if "t1" in settings})

"""Mean training loss of clean and of poisoned images by epoch (CBD paper, figure 4).

A column of panels per attack. The attack itself comes first, and below it the adaptive attack that
adds noise to it. CBD stops training f_B after T1 epochs, when it fits poisoned images but not yet
clean ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bdbench.figures.epochs import (
    BAND,
    by_epoch,
    draw_line,
    undrawn,
    with_curves,
    without_curve,
)
from bdbench.figures.picture import COLOURS, Picture, Place, caption, grid, legend
from bdbench.models.plugins.spec import Spec
from bdbench.records.parts import RecordedSpec
from bdbench.records.record import TRAINED, Record
from bdbench.tables.groups import Group, is_none
from bdbench.tables.numbers import listed
from bdbench.tables.selection import SETTING, Selection, agrees

STYLES: dict[str, dict[str, Any]] = {
    "clean": {"color": COLOURS[1], "linestyle": "-"},
    "poisoned": {"color": COLOURS[2], "linestyle": "--"},
}
VALUES = [f"{kind}_loss" for kind in STYLES]
MOST_NAMED = 4
"""T1 that a label names."""


def draw(selection: Selection) -> Picture:
    """Draw no defense unless others are selected. Dotted lines are the T1 of CBD in the folder."""
    chosen = selection.groups
    if not selection.wanted.get("defense"):
        chosen = [group for group in chosen if is_none(group.names["defense"])]
    groups = with_curves(selection, chosen, VALUES[0])
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
        for value, style in zip(VALUES, STYLES.values(), strict=True):
            draw_line(axes, table, value, 1, style)
        for stop in stops:
            axes.axvline(stop, color="#333333", linestyle=":", linewidth=0.8)
        if stops:
            # One text for all of them: lines may be closer than labels are wide.
            side = "right" if stops[-1] > sum(axes.get_xlim()) / 2 else "left"
            text = f" T1 = {_listed(stops)} "
            axes.text(stops[-1], top, text, ha=side, va="top", fontsize=6.5, color="#333333")
    legend(figure, {f"{kind} images": style for kind, style in STYLES.items()})
    band = [BAND] * bool((data["seeds"] > 1).any())
    sizes = _sample_sizes(groups)
    caption(figure, groups, data["seeds"], *band, *sizes, *without_curve(groups, VALUES))
    return Picture(figure, data, undrawn(chosen, groups))


def _sample_sizes(groups: Iterable[Group]) -> list[str]:
    """A sentence on the training images behind a point, if the records say how many."""
    points = [point for group in groups for record in group.used for point in record.curves]
    counts = sorted({count for point in points if (count := point.get(TRAINED)) is not None})
    ends = dict.fromkeys([*counts[:1], *counts[-1:]])
    return [f"Means over {' to '.join(f'{n:,}' for n in ends)} training images"] * bool(counts)


def _place(group: Group, groups: list[Group]) -> Place:
    """Row and column of a group: its defense, and its attack.

    An attack that wraps another is in the column of that one, in a row with its own name, which
    sorts after the row of the plain attack.
    """
    defense, attack = group.names["defense"], group.names["attack"]
    inner = group.records[0].cell.attack.fields.get("attack")
    wrapper, column = [], attack
    if inner is not None:
        outer = RecordedSpec.of(attack)
        settings = dict(outer.fields)
        name = settings.pop("attack", RecordedSpec.of(inner).name)
        wrapper = [str(Spec(outer.name, settings))]
        plain = (g.names["attack"] for g in groups if agrees(inner, g.records[0].cell.attack))
        column = next(plain, name)
    parts = [*wrapper, *[defense] * (not is_none(defense))]
    return "".join(f"\n{part}" for part in parts), column


def _stops(selection: Selection, group: Group) -> list[int]:
    """The T1, in epochs, with which CBD trained in the setting of a group, without duplicates."""
    same = [g for g in selection.every if all(g.names[a] == group.names[a] for a in SETTING)]
    found = (_stop(record) for each in same for record in each.used)
    return sorted({t1 for t1 in found if t1 is not None})


def _listed(stops: Sequence[int]) -> str:
    """Such as `3, 5 and 8`; of many, the first and the last."""
    if len(stops) > MOST_NAMED:
        return f"{stops[0]} to {stops[-1]}"
    return listed([str(stop) for stop in stops])


def _stop(record: Record) -> int | None:
    """The T1 of CBD, from the record where CBD searched for it; None for another defense."""
    defense = record.cell.defense
    if defense.name != "cbd":
        return None
    searched = defense.fields.get("select", "fixed") != "fixed"
    t1 = record.diagnostics.scalars.get("chosen t1") if searched else defense.fields.get("t1")
    return int(t1) if isinstance(t1, int | float) else None

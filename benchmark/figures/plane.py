"""ASR against CA: a panel per attack, with a labelled point per defense."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bdbench.figures.labels import (
    Label,
    Panel,
    column_height,
    column_width,
    columns,
    labelled,
    relative_width,
)
from bdbench.figures.picture import COLUMN, PAGE, Picture, asr_axis, caption, mark, stacked
from bdbench.models.plugins.errors import InvalidInput, require
from bdbench.tables.groups import ASR, CA, Group, is_none
from bdbench.tables.names import names
from bdbench.tables.selection import Selection

PER_ROW = 2
"""Panels in a row."""
HEIGHT = 2.3
"""Smallest height of a panel, inches."""
LETTERS = 11
"""Letters of a title on an inch."""


def draw(selection: Selection) -> Picture:
    """Draw every defense with its 95 % intervals. The lower right corner is best."""
    groups = selection.settled(selection.groups)
    attacked = [group for group in groups if not is_none(group.names["attack"])]
    require(bool(attacked), f"{selection.results} has no records with an attack")
    used = [group for group in attacked if group.counts(ASR)]
    if not used:
        raise InvalidInput(
            f"all cells with an attack in {selection.results} failed or are not finite; run them "
            f"again with {selection.command()}"
        )
    data = pd.DataFrame([_row(group) for group in used])
    attacks, defenses = names(used, "attack"), names(used, "defense")

    def build(width: float) -> tuple[Figure, Sequence[Panel]]:
        return _figure(data, attacks, defenses, selection.ranks, width, attacked)

    page = PAGE if len(attacks) > 1 else COLUMN
    column = column_width(defenses.values())
    share = relative_width(column, page / min(PER_ROW, len(attacks)))
    return Picture(labelled(build, share), data)


def _row(group: Group) -> dict[str, Any]:
    """One point: shares with their 95 % intervals."""
    row: dict[str, Any] = {axis: group.names[axis] for axis in ("attack", "defense")}
    row["seeds"] = len(group.used)
    for metric in (CA, ASR):
        parts = (metric, f"{metric}_low", f"{metric}_high")
        row |= zip(parts, group.estimate(metric), strict=True)
    return row


def _figure(
    data: pd.DataFrame,
    attacks: Mapping[str, str],
    defenses: Mapping[str, str],
    ranks: Mapping[str, int],
    width: float,
    groups: Sequence[Group],
) -> tuple[Figure, list[Panel]]:
    per_row = min(PER_ROW, len(attacks))
    rows = -(-len(attacks) // per_row)
    height = max(HEIGHT, column_height(defenses.values())) if width else HEIGHT
    size = (PAGE if per_row > 1 else COLUMN, rows * (height + 0.55) + 0.35)
    figure = Figure(size, layout="constrained")
    panels = []
    places = columns(figure, rows, per_row, width)
    for (attack, title), (axes, column) in zip(attacks.items(), places, strict=False):
        own = data[data["attack"] == attack]
        _draw_panel(axes, own, ranks)
        axes.set_title(stacked(title, int(size[0] / per_row * LETTERS)))
        labels = [
            Label(defenses[d], 100 * ca, 100 * asr, mark(ranks[d])["color"])
            for d, ca, asr in zip(own["defense"], own[CA], own[ASR], strict=True)
        ]
        panels.append(Panel(axes, labels, column=column))
    _share_x_range(data, [panel.axes for panel in panels])
    caption(figure, groups, data["seeds"], *_sentences(data))
    return figure, panels


def _draw_panel(axes: Axes, data: pd.DataFrame, ranks: Mapping[str, int]) -> None:
    for _, row in data.iterrows():
        style = mark(ranks[row["defense"]])
        x, y = 100 * row[CA], 100 * row[ASR]
        axes.plot([x], [y], **style, zorder=4)
        ca_interval, asr_interval = (
            [100 * row[f"{metric}_{end}"] for end in ("low", "high")] for metric in (CA, ASR)
        )
        for bar in ((ca_interval, [y, y]), ([x, x], asr_interval)):
            axes.plot(*bar, color=style["color"], linewidth=0.8, alpha=0.6, zorder=3)
    asr_axis(axes)
    axes.set(xlabel="CA (%), better \N{RIGHTWARDS ARROW}")
    axes.set(ylabel="\N{LEFTWARDS ARROW} better, ASR (%)")


def _share_x_range(data: pd.DataFrame, panels: Sequence[Axes]) -> None:
    """Give all panels the same range of CA."""
    ends = 100 * data[[CA, f"{CA}_low", f"{CA}_high"]].to_numpy(dtype=float)
    low, high = float(np.nanmin(ends)), float(np.nanmax(ends))
    margin = max(0.5, 0.06 * (high - low))
    for axes in panels:
        axes.set_xlim(low - margin, high + margin)


def _sentences(data: pd.DataFrame) -> Iterator[str]:
    yield "The lower right corner is best: high CA, low ASR"
    kinds = {seeds > 1 for seeds in data["seeds"]}
    several, one = "interval over seeds", "Wilson interval of one seed"
    yield f"Bars: 95 % {' or '.join([several] * (True in kinds) + [one] * (False in kinds))}"

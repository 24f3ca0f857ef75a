"""ASR against CA: a panel for each attack, with a point for each defense under its name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bdbench.figures.labels import Name, Panel, columns, height_of, labelled, share_of, width_of
from bdbench.figures.picture import COLUMN, PAGE, Picture, asr_axis, caption, mark
from bdbench.figures.selection import Selection
from bdbench.models.plugins.errors import InvalidInput, require
from bdbench.tables.groups import ASR, CA, Group, is_none
from bdbench.tables.names import names

ABREAST = 2
HEIGHT = 2.3
"""Of a panel, inches, at least."""


def draw(selection: Selection) -> Picture:
    """Every defense with its 95 % intervals. The good corner is the lower right."""
    groups = selection.settled(selection.groups)
    attacked = [group for group in groups if not is_none(group.names["attack"])]
    require(bool(attacked), f"{selection.results} has no record of an attack to compare by")
    used = [group for group in attacked if group.counts(ASR)]
    if not used:
        raise InvalidInput(
            f"{selection.results}: all cells with an attack failed or are not finite; "
            f"{selection.command()} tries them again"
        )
    data = pd.DataFrame([_row(group) for group in used])
    titles, called = names(used, "attack"), names(used, "defense")

    def build(width: float) -> tuple[Figure, Sequence[Panel]]:
        return _figure(data, titles, called, selection.ranks, width, attacked)

    page = PAGE if len(titles) > 1 else COLUMN
    abreast = min(ABREAST, len(titles))
    return Picture(labelled(build, share_of(width_of(called.values()), page / abreast)), data)


def _row(group: Group) -> dict[str, Any]:
    """One point; shares with their 95 % intervals."""
    row: dict[str, Any] = {axis: group.names[axis] for axis in ("attack", "defense")}
    row["seeds"] = len(group.used)
    for metric in (CA, ASR):
        parts = (metric, f"{metric}_low", f"{metric}_high")
        row |= zip(parts, group.estimate(metric), strict=True)
    return row


def _figure(
    data: pd.DataFrame,
    titles: Mapping[str, str],
    called: Mapping[str, str],
    ranks: Mapping[str, int],
    width: float,
    groups: Sequence[Group],
) -> tuple[Figure, list[Panel]]:
    abreast = min(ABREAST, len(titles))
    rows = -(-len(titles) // abreast)
    tall = max(HEIGHT, height_of(called.values())) if width else HEIGHT
    size = (PAGE if abreast > 1 else COLUMN, rows * (tall + 0.55) + 0.35)
    figure = Figure(size, layout="constrained")
    panels = []
    places = columns(figure, rows, abreast, width)
    for (attack, title), (axes, column) in zip(titles.items(), places, strict=False):
        own = data[data["attack"] == attack]
        _draw_panel(axes, own, ranks)
        axes.set_title(title)
        points = [
            Name(called[d], 100 * ca, 100 * asr, mark(ranks[d])["color"])
            for d, ca, asr in zip(own["defense"], own[CA], own[ASR], strict=True)
        ]
        panels.append(Panel(axes, points, column=column))
    _share(data, [panel.axes for panel in panels])
    caption(figure, groups, *_sentences(data))
    return figure, panels


def _draw_panel(axes: Axes, data: pd.DataFrame, ranks: Mapping[str, int]) -> None:
    for _, row in data.iterrows():
        look = mark(ranks[row["defense"]])
        x, y = 100 * row[CA], 100 * row[ASR]
        axes.plot([x], [y], **look, zorder=4)
        across, along = (
            [100 * row[f"{metric}_{end}"] for end in ("low", "high")] for metric in (CA, ASR)
        )
        for bar in ((across, [y, y]), ([x, x], along)):
            axes.plot(*bar, color=look["color"], linewidth=0.8, alpha=0.6, zorder=3)
    asr_axis(axes)
    axes.set(xlabel="CA (%), better \N{RIGHTWARDS ARROW}")
    axes.set(ylabel="\N{LEFTWARDS ARROW} better, ASR (%)")


def _share(data: pd.DataFrame, panels: Sequence[Axes]) -> None:
    """One range of CA for all panels, so that they can be compared."""
    ends = 100 * data[[CA, f"{CA}_low", f"{CA}_high"]].to_numpy(dtype=float)
    low, high = float(np.nanmin(ends)), float(np.nanmax(ends))
    room = max(0.5, 0.06 * (high - low))
    for axes in panels:
        axes.set_xlim(low - room, high + room)


def _sentences(data: pd.DataFrame) -> Iterator[str]:
    yield "The good corner is the lower right: high CA, low ASR"
    kinds = {seeds > 1 for seeds in data["seeds"]}
    several, one = "t interval over seeds", "Wilson interval of one seed"
    yield f"Bars: 95 % {' or '.join([several] * (True in kinds) + [one] * (False in kinds))}"

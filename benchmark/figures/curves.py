"""CA and ASR by epoch: a column of panels per attack, a line per defense."""

from __future__ import annotations

from bdbench.figures.epochs import (
    BAND,
    by_epoch,
    draw_line,
    sample_sizes,
    undrawn,
    with_curves,
    without_curve,
)
from bdbench.figures.picture import Picture, caption, grid, legend, line_style
from bdbench.tables.groups import is_none
from bdbench.tables.selection import Selection

ROWS = {"clean_accuracy": "CA (%)", "attack_success_rate": "ASR (%)"}


def draw(selection: Selection) -> Picture:
    """Draw the epochs of the network that a defense returns. Clean training, which has no ASR, is
    left out unless it is selected."""
    groups = with_curves(selection, selection.groups, "clean_accuracy")
    if not selection.wanted.get("attack"):
        groups = [g for g in groups if not is_none(g.names["attack"])] or groups
    data = by_epoch(groups, list(ROWS))
    attacks = dict.fromkeys(data["attack"])
    places = [
        (value, attack)
        for attack in attacks
        for value in ROWS
        if value == "clean_accuracy" or not is_none(attack)
    ]
    figure, panels = grid(places, ROWS, height=1.3, below="epoch")
    names = sorted(set(data["defense"]), key=selection.ranks.__getitem__)
    styles = {name: line_style(selection.ranks[name], 3) for name in names}
    for attack, defense in data[["attack", "defense"]].drop_duplicates().itertuples(index=False):
        table = data[(data["attack"] == attack) & (data["defense"] == defense)]
        # About six markers per line, at different epochs for different lines.
        every = max(1, len(table) // 6)
        marks = {"markevery": (selection.ranks[defense] % every, every)}
        for value in ROWS:
            if (value, attack) in panels:
                draw_line(panels[value, attack], table, value, 100, styles[defense] | marks)
    for axes in panels.values():
        axes.set(ylim=(-3, 103), yticks=range(0, 101, 25))
    legend(figure, styles)
    caption(
        figure,
        groups,
        data["seeds"],
        *[BAND] * bool((data["seeds"] > 1).any()),
        *sample_sizes(groups),
        *without_curve(groups, list(ROWS)),
    )
    return Picture(figure, data, undrawn(selection.groups, groups))

"""Records by epoch: what `bdbench run --curves` left in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from bdbench.figures.selection import Selection
from bdbench.records.record import TESTED
from bdbench.tables.groups import Group

BAND = "Bands reach from the lowest to the highest seed"


def by_epoch(groups: Sequence[Group], values: Sequence[str]) -> pd.DataFrame:
    """One row per group and epoch: attack, defense, epoch, seeds, and for each value of the points
    its mean over the seeds, its lowest and its highest (`_low`, `_high`); nan where it is None."""
    tables = []
    for group in groups:
        points = pd.DataFrame([point for record in group.used for point in record.curves])
        if points.empty:
            continue
        epochs = points.reindex(columns=["epoch", *values]).astype(float).groupby("epoch")
        table = pd.DataFrame({"seeds": epochs.size()})
        for value in values:
            table[[value, f"{value}_low", f"{value}_high"]] = epochs[value].agg(
                ["mean", "min", "max"]
            )
        table = table.reset_index().astype({"epoch": int})
        table.insert(0, "attack", group.names["attack"])
        table.insert(1, "defense", group.names["defense"])
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def footing(groups: Sequence[Group]) -> list[str]:
    """A sentence on how few test images points may stand on, where not all stand on the same."""
    points = [point for group in groups for record in group.used for point in record.curves]
    counts = {point[TESTED] for point in points if TESTED in point}
    if len(counts) < 2:
        return []
    return [f"Before the last, a point may stand on as few as {min(counts):,} test images"]


def with_curves(selection: Selection, groups: Sequence[Group], value: str) -> list[Group]:
    """The groups with any point that has this value, of one data set, model and recipe.

    Raises `InvalidInput`: for none with the command that makes them, for several settings.
    """
    found = [
        group
        for group in groups
        if any(point.get(value) is not None for r in group.used for point in r.curves)
    ]
    if not found:
        raise selection.lack(f"{selection.results} has no curves of {value.replace('_', ' ')}")
    return selection.settled(found)


def draw_line(
    axes: Axes, table: pd.DataFrame, value: str, scale: float, look: Mapping[str, Any]
) -> None:
    """A value by epoch, times `scale`, with a band where seeds differ."""
    axes.plot(table["epoch"], scale * table[value], **look)
    low, high = (scale * table[f"{value}_{end}"] for end in ("low", "high"))
    axes.fill_between(table["epoch"], low, high, color=look["color"], alpha=0.2, linewidth=0)

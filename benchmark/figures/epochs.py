"""The curves in records, which `bdbench run --curves` measures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from bdbench.figures.picture import left_out
from bdbench.records.record import TESTED
from bdbench.tables.groups import Group, is_none
from bdbench.tables.selection import SETTING, Selection

BAND = "Bands: range over seeds"


def by_epoch(groups: Sequence[Group], values: Sequence[str]) -> pd.DataFrame:
    """One row per group and epoch: attack, defense, epoch, seeds with any of the values, and for
    each value its mean over the seeds, its minimum and its maximum (`_low`, `_high`); nan where it
    was not measured."""
    tables = []
    for group in groups:
        points = pd.DataFrame([p for r in group.used for p in r.curves if _has(p, values)])
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


def without_curve(groups: Iterable[Group], values: Sequence[str]) -> list[str]:
    """A sentence on the seeds without a curve of any of the values, if there are any."""
    lacking = (
        (group, sum(not any(_has(p, values) for p in record.curves) for record in group.used))
        for group in groups
    )
    return left_out("no curve", lacking)


def undrawn(groups: Iterable[Group], drawn: Sequence[Group]) -> tuple[str, ...]:
    """Lines for the user on the cells, among these groups, that have no curve of any seed.

    Those of another setting and of clean training are not meant unless such a one is drawn.
    """
    shown = {id(group) for group in drawn}
    clean = any(is_none(group.names["attack"]) for group in drawn)
    found: dict[str, list[str]] = {}
    for group in groups:
        meant = clean or not is_none(group.names["attack"])
        alike = all(group.names[axis] == drawn[0].names[axis] for axis in SETTING)
        if id(group) not in shown and meant and alike:
            cell = f"{group.names['defense']} on {group.names['attack']}"
            found.setdefault(group.state or "no curve", []).append(cell)
    return tuple(f"left out, {why}: {', '.join(cells)}" for why, cells in found.items())


def _has(point: Mapping[str, Any], values: Sequence[str]) -> bool:
    """Whether a point of a curve has any of the values."""
    return any(point.get(value) is not None for value in values)


def sample_sizes(groups: Sequence[Group]) -> list[str]:
    """A sentence on the smallest number of test images per point, if the numbers differ."""
    points = [point for group in groups for record in group.used for point in record.curves]
    counts = {count for point in points if (count := point.get(TESTED)) is not None}
    if len(counts) < 2:
        return []
    return [f"Points before the last use as few as {min(counts):,} test images"]


def with_curves(selection: Selection, groups: Sequence[Group], value: str) -> list[Group]:
    """The groups with a curve of this value, which must share data set, model and recipe.

    Raises `InvalidInput` for several settings, and for no such group, with the command that creates
    curves.
    """
    found = [
        group
        for group in groups
        if any(_has(point, [value]) for r in group.used for point in r.curves)
    ]
    if not found:
        meant = groups or selection.groups
        cells = ", ".join(dict.fromkeys(group.names["defense"] for group in meant))
        what = f"{selection.results} has no curves of {value.replace('_', ' ')} of {cells}"
        raise selection.missing(what, meant)
    return selection.settled(found)


def draw_line(
    axes: Axes, table: pd.DataFrame, value: str, scale: float, style: Mapping[str, Any]
) -> None:
    """Draw a value by epoch, times `scale`, with a band for the range over seeds."""
    axes.plot(table["epoch"], scale * table[value], **style)
    low, high = (scale * table[f"{value}_{end}"] for end in ("low", "high"))
    axes.fill_between(table["epoch"], low, high, color=style["color"], alpha=0.2, linewidth=0)

"""Line charts as numbers in a frame, for a template to draw."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from bdbench.records.record import METRICS, STANDS

WIDTH, HEIGHT = 640, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 624, 12, 208


@dataclass(frozen=True)
class Chart:
    """Curves over epochs in a frame of `WIDTH` by `HEIGHT` units.

    rows, columns: what is marked on the axes, place and label
    lines: name and SVG path
    """

    title: str
    rows: list[tuple[float, str]]
    columns: list[tuple[float, str]]
    lines: list[tuple[str, str]]


def names(curves: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was measured at some epoch, shares first, and last on how many images."""
    found = {name for point in curves for name in point} - {"epoch"}
    others = sorted(found - {*METRICS, *STANDS})
    return [*filter(found.__contains__, METRICS), *others, *filter(found.__contains__, STANDS)]


def charts(curves: Sequence[Mapping[str, Any]]) -> Iterator[Chart]:
    """Of the curves of a record: one chart for the shares, one for all else."""
    for title, shares in (("Shares of test images, in percent", True), ("Mean losses", False)):
        drawn = [name for name in names(curves) if name not in STANDS]
        own = [name for name in drawn if (name in METRICS) == shares]
        values = [point[name] for point in curves for name in own if _known(point.get(name))]
        if values:
            low, high = (0.0, 1.0) if shares else (min(0.0, *values), max(0.0, *values) or 1.0)
            yield _chart(title, curves, own, low, high, 100 if shares else 1)


def _chart(
    title: str,
    curves: Sequence[Mapping[str, Any]],
    own: Sequence[str],
    low: float,
    high: float,
    unit: float,
) -> Chart:
    first, last = (pick(point["epoch"] for point in curves) for pick in (min, max))
    across = (RIGHT - LEFT) / max(1, last - first)
    down = (BOTTOM - TOP) / (high - low)
    marks = [low + (high - low) * quarter / 4 for quarter in range(5)]
    step = max(1, math.ceil((last - first) / 8))
    lines = []
    for name in own:
        path, pen = [], "M"
        for point in curves:
            value = point.get(name)
            if _known(value):
                x, y = LEFT + across * (point["epoch"] - first), BOTTOM - down * (value - low)
                # A line of no length is drawn as a dot, should its neighbours be missing.
                path.append(f"{pen}{x:.1f} {y:.1f}" + "h0" * (pen == "M"))
            pen = "L" if _known(value) else "M"
        lines.append((name, "".join(path)))
    return Chart(
        title=title,
        rows=[(round(BOTTOM - down * (mark - low), 1), f"{unit * mark:.3g}") for mark in marks],
        columns=[
            (round(LEFT + across * (epoch - first), 1), str(epoch))
            for epoch in range(first, last + 1, step)
        ],
        lines=lines,
    )


def _known(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)

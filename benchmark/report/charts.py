"""Line charts as numbers in a frame, for a template to draw."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from bdbench.records.record import METRICS, STANDS

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 72, 620, 14, 240
EPOCHS, VALUES = 10, 5
"""Marks on the axes at most, nearly."""
STEPS = (1, 2, 5)
"""Of which the distances of marks are a multiple by a power of ten."""
WORDS = {
    "clean_accuracy": "clean accuracy, CA",
    "attack_success_rate": "attack success rate, ASR",
    "robust_accuracy": "robust accuracy, R-Acc",
    "asr_floor": "ASR floor, without the trigger",
    "clean_loss": "clean training images",
    "poisoned_loss": "poisoned training images",
}
"""What a curve is called in a key."""


@dataclass(frozen=True)
class Line:
    """A curve: its name, its SVG path, the points that were measured, and the last value as text.
    Neighbours of a point that is missing are not joined.

    style: number of its colour and dashes, the same for a metric in all charts
    """

    name: str
    style: int
    path: str
    points: Sequence[tuple[float, float]]
    last: str


@dataclass(frozen=True)
class Chart:
    """Curves over epochs in a frame of `WIDTH` by `HEIGHT` units.

    across: what the epochs are
    up: title of the other axis, with its unit
    rows, columns: what is marked on the axes, place and label
    """

    title: str
    up: str
    rows: list[tuple[float, str]]
    columns: list[tuple[float, str]]
    lines: list[Line]


def names(curves: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was measured at some epoch, shares first, and last on how many images."""
    found = {name for point in curves for name in point} - {"epoch"}
    others = sorted(found - {*METRICS, *STANDS})
    return [*filter(found.__contains__, METRICS), *others, *filter(found.__contains__, STANDS)]


def charts(curves: Sequence[Mapping[str, Any]]) -> Iterator[Chart]:
    """Of the curves of a record: one chart for the shares, one for all else."""
    for title, up, shares in (
        ("Shares of test images by epoch", "percent", True),
        ("Mean losses by epoch", "mean loss", False),
    ):
        drawn = [name for name in names(curves) if name not in STANDS]
        own = [name for name in drawn if (name in METRICS) == shares]
        values = [point[name] for point in curves for name in own if _known(point.get(name))]
        if values:
            low, high = (0.0, 1.0) if shares else (min(0.0, *values), max(0.0, *values) or 1.0)
            yield _chart(title, up, curves, own, _marks(low, high), 100 if shares else 1)


def _chart(
    title: str,
    up: str,
    curves: Sequence[Mapping[str, Any]],
    own: Sequence[str],
    marks: Sequence[float],
    unit: float,
) -> Chart:
    """marks: on the axis of the values, its ends included"""
    epochs = [int(point["epoch"]) for point in curves]
    first, last = min(epochs), max(epochs)
    across = (RIGHT - LEFT) / max(1, last - first)
    down = (BOTTOM - TOP) / (marks[-1] - marks[0])

    def place(epoch: float) -> float:
        return round(LEFT + across * (epoch - first), 1)

    def height(value: float) -> float:
        return round(BOTTOM - down * (value - marks[0]), 1)

    lines = []
    for style, name in enumerate(own):
        path, pen, points, value = [], "M", [], None
        for point in curves:
            found = point.get(name)
            if _known(found):
                value = found
                points.append((place(point["epoch"]), height(found)))
                path.append(f"{pen}{points[-1][0]} {points[-1][1]}")
            pen = "L" if _known(found) else "M"
        if value is not None:
            last_one = f"{unit * value:.3g}"
            lines.append(Line(WORDS.get(name, name), style, "".join(path), points, last_one))
    return Chart(
        title=title,
        up=up,
        rows=[(height(mark), f"{unit * mark:.3g}") for mark in marks],
        columns=[(place(epoch), str(epoch)) for epoch in _epochs(first, last)],
        lines=lines,
    )


def _epochs(first: int, last: int) -> list[int]:
    """Round numbers within the curve, or its only epoch."""
    step = max(1, round(_step(last - first, EPOCHS)))
    return list(range(-(-first // step) * step, last + 1, step)) or [first]


def _marks(low: float, high: float) -> list[float]:
    """Round numbers from below or at `low` to above or at `high`."""
    step = _step(high - low, VALUES)
    return [n * step for n in range(math.floor(low / step), math.ceil(high / step - 1e-9) + 1)]


def _step(span: float, parts: int) -> float:
    """The smallest round number of which so many cover the span."""
    rough = max(span / parts, 1e-12)
    power: float = 10.0 ** math.floor(math.log10(rough))
    return next((n * power for n in STEPS if n * power >= rough * (1 - 1e-9)), 10 * power)


def _known(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)

"""Line charts as coordinates in a frame, which a template draws as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from bdbench.records.record import METRICS, STANDS

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 72, 620, 14, 240
EPOCH_TICKS, VALUE_TICKS = 10, 5
"""Approximate largest number of ticks on the two axes."""
STEPS = (1, 2, 5)
"""Ticks are one of these times a power of ten apart."""
WORDS = {
    "clean_accuracy": "clean accuracy, CA",
    "attack_success_rate": "attack success rate, ASR",
    "robust_accuracy": "robust accuracy, R-Acc",
    "asr_floor": "ASR floor, without the trigger",
    "clean_loss": "clean training images",
    "poisoned_loss": "poisoned training images",
}
"""By metric, the name of its curve in the key."""


@dataclass(frozen=True)
class Line:
    """A curve.

    style: number of its colour and dash pattern, the same for a metric in all charts
    path: as SVG; it is interrupted where a point is missing
    points: the measured points
    last: the last value, as text
    """

    name: str
    style: int
    path: str
    points: Sequence[tuple[float, float]]
    last: str


@dataclass(frozen=True)
class Chart:
    """Curves over epochs in a frame of `WIDTH` by `HEIGHT` units.

    y_title: title of the vertical axis, with its unit
    y_ticks, x_ticks: position and label of each tick
    """

    title: str
    y_title: str
    y_ticks: list[tuple[float, str]]
    x_ticks: list[tuple[float, str]]
    lines: list[Line]


def names(curves: Sequence[Mapping[str, Any]]) -> list[str]:
    """The metrics that were measured at any epoch: shares first, numbers of test images last."""
    found = {name for point in curves for name in point} - {"epoch"}
    others = sorted(found - {*METRICS, *STANDS})
    return [*filter(found.__contains__, METRICS), *others, *filter(found.__contains__, STANDS)]


def charts(curves: Sequence[Mapping[str, Any]]) -> Iterator[Chart]:
    """The charts of a record's curves: one for shares, one for those of each part of its attack,
    and one for losses. So no chart has more lines than there are styles."""
    shares: dict[str, list[str]] = {}
    losses: list[str] = []
    for name in names(curves):
        # A part of an attack has metrics of its own, such as asr_floor_sig_2.
        metric = next(filter(name.startswith, METRICS), None)
        if metric:
            shares.setdefault(name.removeprefix(metric).removeprefix("_"), []).append(name)
        elif name not in STANDS:
            losses.append(name)
    for part, own in shares.items():
        own.sort(key=_metric)
        if _values(curves, own):
            title = "Shares of test images by epoch" + f", {part}" * bool(part)
            yield _chart(title, "percent", curves, own, _value_ticks(0.0, 1.0), 100)
    if values := _values(curves, losses):
        ticks = _value_ticks(min(0.0, *values), max(0.0, *values) or 1.0)
        yield _chart("Mean losses by epoch", "mean loss", curves, losses, ticks, 1)


def _metric(name: str) -> int:
    """The number of a metric, of an attack or of a part of it; its style in all charts."""
    return next(n for n, metric in enumerate(METRICS) if name.startswith(metric))


def _values(curves: Sequence[Mapping[str, Any]], own: Sequence[str]) -> list[float]:
    """The known values of some metrics."""
    return [point[name] for point in curves for name in own if _known(point.get(name))]


def _chart(
    title: str,
    y_title: str,
    curves: Sequence[Mapping[str, Any]],
    metrics: Sequence[str],
    ticks: Sequence[float],
    unit: float,
) -> Chart:
    """ticks: of the vertical axis, both ends included"""
    epochs = [int(point["epoch"]) for point in curves]
    first, last = min(epochs), max(epochs)
    x_scale = (RIGHT - LEFT) / max(1, last - first)
    y_scale = (BOTTOM - TOP) / (ticks[-1] - ticks[0])

    def x(epoch: float) -> float:
        return round(LEFT + x_scale * (epoch - first), 1)

    def y(value: float) -> float:
        return round(BOTTOM - y_scale * (value - ticks[0]), 1)

    lines = []
    for n, name in enumerate(metrics):
        style = _metric(name) if name.startswith(METRICS) else n
        metric = METRICS[style] if name.startswith(METRICS) else name
        path, pen, points, value = [], "M", [], None
        for point in curves:
            found = point.get(name)
            if _known(found):
                value = found
                points.append((x(point["epoch"]), y(found)))
                path.append(f"{pen}{points[-1][0]} {points[-1][1]}")
            pen = "L" if _known(found) else "M"
        if value is not None:
            last_value = f"{unit * value:.3g}"
            words = WORDS.get(metric, metric)
            lines.append(Line(words, style, "".join(path), points, last_value))
    return Chart(
        title=title,
        y_title=y_title,
        y_ticks=[(y(tick), f"{unit * tick:.3g}") for tick in ticks],
        x_ticks=[(x(epoch), str(epoch)) for epoch in _epoch_ticks(first, last)],
        lines=lines,
    )


def _epoch_ticks(first: int, last: int) -> list[int]:
    """Round numbers from `first` to `last`, or the only epoch."""
    step = max(1, round(_step(last - first, EPOCH_TICKS)))
    return list(range(-(-first // step) * step, last + 1, step)) or [first]


def _value_ticks(low: float, high: float) -> list[float]:
    """Round numbers that include `low` and `high` in their range."""
    step = _step(high - low, VALUE_TICKS)
    return [n * step for n in range(math.floor(low / step), math.ceil(high / step - 1e-9) + 1)]


def _step(span: float, parts: int) -> float:
    """The smallest round number that, times `parts`, covers the span."""
    rough = max(span / parts, 1e-12)
    power: float = 10.0 ** math.floor(math.log10(rough))
    return next((n * power for n in STEPS if n * power >= rough * (1 - 1e-9)), 10 * power)


def _known(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)

"""Names beside the points of a figure, none over another, in place of a legend.

A name stands at its point where there is room for all of them. Else all stand in a column beside
the panel, in the order of the points from top to bottom, each with a line to its point.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.textpath import TextPath
from matplotlib.transforms import Bbox
from sklearn.isotonic import isotonic_regression

SIZE = 6.5
"""Of the letters, points."""
LETTERS = 24
"""Of a line of a name."""
LINE = 0.115
"""Inches from one line of the column to the next."""
GAP = 3.0
"""From a point to its name, points."""
AXIS = 0.65
"""Inches that the labels of an axis take."""
MARK = 2.8
"""Half of the side of a mark, points."""
HALO = [withStroke(linewidth=1.5, foreground="white")]
"""Around letters, which may stand on a bar or a line."""
SIDES = ((1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))
"""Of a point, where its name may stand, best first, which is off its bars; upwards is positive."""
ALIGNMENT = {1: ("left", "bottom"), 0: ("center", "center"), -1: ("right", "top")}


@dataclass(frozen=True)
class Name:
    """x, y: of the point, as the axes have them; color: of its mark"""

    text: str
    x: float
    y: float
    color: str


@dataclass(frozen=True)
class Panel:
    """names: of its points. others: more points that no name may cover, as (x, y). column: empty
    axes beside it."""

    axes: Axes
    names: Sequence[Name]
    others: Sequence[tuple[float, float]] = ()
    column: Axes | None = None


Build = Callable[[float], tuple[Figure, Sequence[Panel]]]
"""Draws a figure with columns so wide beside its panels, relative to these; 0 for none."""


def labelled(build: Build, width: float) -> Figure:
    """A figure with names at its points, or in columns of this width relative to the panels."""
    figure, panels = build(0.0)
    renderer = _settled(figure)
    if all(_at_points(figure, panel, renderer) for panel in panels):
        return figure
    figure, panels = build(width)
    renderer = _settled(figure)
    for panel in panels:
        _in_a_column(figure, panel, renderer)
    return figure


def height_of(names: Collection[str]) -> float:
    """Inches that a column of these names takes."""
    return LINE * sum(wrapped(name).count("\n") + 1.15 for name in names)


def width_of(names: Collection[str]) -> float:
    """Inches of a column with room for the longest line."""
    lines = [line for name in names for line in wrapped(name).split("\n")]
    longest = max(TextPath((0, 0), line, size=SIZE).get_extents().width for line in lines)
    return float(longest) / 72 + 0.2


def share_of(column: float, page: float) -> float:
    """The width of a column relative to its panel, where both, with an axis, are so wide, inches;
    at most a fifth more than the panel."""
    return min(1.2, column / max(column, page - column - AXIS))


def wrapped(name: str) -> str:
    """On as many lines as it needs."""
    return textwrap.fill(name, LETTERS)


def _at_points(figure: Figure, panel: Panel, renderer: RendererBase) -> bool:
    """Put each name beside its point, if there is room for all."""
    frame = panel.axes.get_window_extent(renderer)
    unit = figure.dpi / 72
    points = [(name.x, name.y) for name in panel.names] + list(panel.others)
    taken = [
        Bbox.from_extents(x - MARK * unit, y - MARK * unit, x + MARK * unit, y + MARK * unit)
        for x, y in panel.axes.transData.transform(points)
    ]
    for name in panel.names:
        box = _first_free(panel.axes, name, frame, taken, renderer)
        if box is None:
            return False
        taken.append(box)
    return True


def _first_free(
    axes: Axes, name: Name, frame: Bbox, taken: Sequence[Bbox], renderer: RendererBase
) -> Bbox | None:
    """Where a name was written, in pixels; nothing where there is no room."""
    for across, up in SIDES:
        text = _write(axes, name, (GAP * across, GAP * up), across, up)
        box = text.get_window_extent(renderer)
        inside = frame.x0 <= box.x0 and box.x1 <= frame.x1
        inside = inside and frame.y0 <= box.y0 and box.y1 <= frame.y1
        if inside and not any(box.overlaps(other) for other in taken):
            return box
        text.remove()
    return None


def _in_a_column(figure: Figure, panel: Panel, renderer: RendererBase) -> None:
    """Put the names beside the panel, each as near to the height of its point as the others let
    it, and draw a line from each to its point."""
    assert panel.column is not None
    unit = figure.dpi / 72
    frame, column = (axes.get_window_extent(renderer) for axes in (panel.axes, panel.column))
    places = panel.axes.transData.transform([(name.x, name.y) for name in panel.names])
    order = sorted(range(len(places)), key=lambda n: (places[n][1], -places[n][0]))
    tall = [height_of([panel.names[n].text]) * figure.dpi for n in order]
    heights = _apart([float(places[n][1]) for n in order], tall, frame.y0, frame.y1)
    for n, height in zip(order, heights, strict=True):
        x, y = places[n]
        offset = ((column.x0 - x) / unit, (height - y) / unit)
        text = _write(panel.axes, panel.names[n], offset, 1, 0, line=True)
        text.set_annotation_clip(False)


def _apart(wanted: Sequence[float], tall: Sequence[float], low: float, high: float) -> list[float]:
    """The middles of things so tall, from the lowest up, as near as can be to what is wanted, none
    over another and all from `low` to `high`, where these leave room."""
    below = [sum(tall[:n]) + own / 2 for n, own in enumerate(tall)]
    lowest, highest = low, max(low, high - sum(tall))
    free = [place - less for place, less in zip(wanted, below, strict=True)]
    found = isotonic_regression(free, y_min=lowest, y_max=highest)
    return [float(place) + less for place, less in zip(found, below, strict=True)]


def _write(
    axes: Axes,
    name: Name,
    offset: tuple[float, float],
    across: int,
    up: int,
    line: bool = False,
) -> Annotation:
    """A name so many points from its point."""
    arrow = {"arrowstyle": "-", "color": name.color, "linewidth": 0.5, "relpos": (0, 0.5)}
    arrow |= {"shrinkA": 1, "shrinkB": 2}
    text = axes.annotate(
        wrapped(name.text),
        (name.x, name.y),
        offset,
        textcoords="offset points",
        fontsize=SIZE,
        ha=ALIGNMENT[across][0],
        va=ALIGNMENT[up][1],
        linespacing=1.05,
        arrowprops=arrow if line else None,
        path_effects=HALO,
        zorder=5,
    )
    # The panel keeps its size, so that the place that was found stays right.
    text.set_in_layout(False)
    return text


def _settled(figure: Figure) -> RendererBase:
    """What measures text, once all panels have their places."""
    canvas = FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    renderer: RendererBase = canvas.get_renderer()  # type: ignore[no-untyped-call]
    return renderer


def columns(
    figure: Figure, rows: int, abreast: int, width: float
) -> Iterator[tuple[Axes, Axes | None]]:
    """Panels from the upper left, each with an empty column beside it if it has a width."""
    ratios = [1.0, width] * abreast if width else [1.0] * abreast
    grid = figure.add_gridspec(rows, len(ratios), width_ratios=ratios)
    step = len(ratios) // abreast
    for row in range(rows):
        for place in range(0, len(ratios), step):
            panel, column = figure.add_subplot(grid[row, place]), None
            if width:
                column = figure.add_subplot(grid[row, place + 1])
                column.set_axis_off()
            yield panel, column

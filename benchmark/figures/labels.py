"""Labels at the points of a figure in place of a legend, without overlaps.

If there is room for all labels, each is next to its point. Otherwise all are in a column beside the
panel, in the vertical order of the points, each with a line to its point.
"""

from __future__ import annotations

import math
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

FONT_SIZE = 6.5
"""In points."""
LINE_LENGTH = 24
"""Characters per line of a label."""
LINE_HEIGHT = 0.115
"""Inches from one line of the column to the next."""
GAP = 3.0
"""Distance from a point to its label, points."""
AXIS = 0.65
"""Width of the tick labels and the title of an axis, inches."""
MARK = 2.8
"""Half the side of a marker, points."""
HALO = [withStroke(linewidth=1.5, foreground="white")]
"""White outline of the text, which may cover a bar or a line."""
SIDES = ((1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))
"""Where a label may be relative to its point, best first: off its error bars. Up is positive."""
ALIGNMENT = {1: ("left", "bottom"), 0: ("center", "center"), -1: ("right", "top")}


@dataclass(frozen=True)
class Label:
    """The label of a point.

    x, y: data coordinates of the point
    color: that of its marker
    """

    text: str
    x: float
    y: float
    color: str


@dataclass(frozen=True)
class Panel:
    """A panel with labels.

    others: further points that no label may cover, as (x, y)
    column: empty axes beside the panel
    """

    axes: Axes
    labels: Sequence[Label]
    others: Sequence[tuple[float, float]] = ()
    column: Axes | None = None


Place = Sequence[float]
"""x and y, pixels."""
Build = Callable[[float], tuple[Figure, Sequence[Panel]]]
"""Draws a figure. Its argument is the width of the label columns relative to the panels, 0 for
none."""


def labelled(build: Build, width: float) -> Figure:
    """A figure with labels at its points, or in columns of this width relative to the panels."""
    figure, panels = build(0.0)
    renderer = _renderer(figure)
    if all(_at_points(figure, panel, renderer) for panel in panels):
        return figure
    figure, panels = build(width)
    renderer = _renderer(figure)
    for panel in panels:
        _in_a_column(figure, panel, renderer)
    return figure


def column_height(names: Collection[str]) -> float:
    """The height of a column of these labels, inches."""
    return LINE_HEIGHT * sum(wrapped(name).count("\n") + 1.15 for name in names)


def column_width(names: Collection[str]) -> float:
    """The width of a column of these labels, inches."""
    lines = [line for name in names for line in wrapped(name).split("\n")]
    longest = max(TextPath((0, 0), line, size=FONT_SIZE).get_extents().width for line in lines)
    return float(longest) / 72 + 0.2


def relative_width(column: float, page: float) -> float:
    """The width of a label column relative to its panel, at most 1.2.

    page: width of panel, axis and column together, inches
    """
    return min(1.2, column / max(column, page - column - AXIS))


def wrapped(name: str) -> str:
    """A label with line breaks."""
    return textwrap.fill(name, LINE_LENGTH)


def _at_points(figure: Figure, panel: Panel, renderer: RendererBase) -> bool:
    """Put each label next to its point; False if there is no room for all."""
    frame = panel.axes.get_window_extent(renderer)
    unit = figure.dpi / 72
    points = [(label.x, label.y) for label in panel.labels] + list(panel.others)
    places = panel.axes.transData.transform(points)
    taken = [
        Bbox.from_extents(x - MARK * unit, y - MARK * unit, x + MARK * unit, y + MARK * unit)
        for x, y in places
    ]
    labelled_places = places[: len(panel.labels)]
    for label, own in zip(panel.labels, labelled_places, strict=True):

        def fits(box: Bbox, own: Place = own) -> bool:
            if any(box.overlaps(other) for other in taken):
                return False
            # Its reader takes a label for that of the nearest point.
            return all(_distance(box, own) <= _distance(box, each) for each in labelled_places)

        box = _first_free(panel.axes, label, frame, fits, renderer)
        if box is None:
            return False
        taken.append(box)
    return True


def _first_free(
    axes: Axes, label: Label, frame: Bbox, fits: Callable[[Bbox], bool], renderer: RendererBase
) -> Bbox | None:
    """Write a label at the first side of its point where it fits. Returns its box in pixels, or
    None."""
    for across, up in SIDES:
        text = _write(axes, label, (GAP * across, GAP * up), across, up)
        box = text.get_window_extent(renderer)
        inside = frame.x0 <= box.x0 and box.x1 <= frame.x1
        inside = inside and frame.y0 <= box.y0 and box.y1 <= frame.y1
        if inside and fits(box):
            return box
        text.remove()
    return None


def _distance(box: Bbox, place: Place) -> float:
    """From a point to the nearest point of a box, pixels."""
    x, y = place
    return math.hypot(max(box.x0 - x, x - box.x1, 0), max(box.y0 - y, y - box.y1, 0))


def _in_a_column(figure: Figure, panel: Panel, renderer: RendererBase) -> None:
    """Put the labels beside the panel, each as close to the height of its point as the others
    allow, with a line to its point."""
    assert panel.column is not None
    unit = figure.dpi / 72
    frame, column = (axes.get_window_extent(renderer) for axes in (panel.axes, panel.column))
    places = panel.axes.transData.transform([(label.x, label.y) for label in panel.labels])
    order = sorted(range(len(places)), key=lambda n: (places[n][1], -places[n][0]))
    heights = [column_height([panel.labels[n].text]) * figure.dpi for n in order]
    centers = _spread([float(places[n][1]) for n in order], heights, frame.y0, frame.y1)
    for n, center in zip(order, centers, strict=True):
        x, y = places[n]
        offset = ((column.x0 - x) / unit, (center - y) / unit)
        text = _write(panel.axes, panel.labels[n], offset, 1, 0, line=True)
        text.set_annotation_clip(False)


def _spread(
    wanted: Sequence[float], heights: Sequence[float], low: float, high: float
) -> list[float]:
    """The centers of boxes, bottom to top, as close to the wanted ones as possible without overlap
    and, if they fit, within `low` and `high`."""
    below = [sum(heights[:n]) + height / 2 for n, height in enumerate(heights)]
    highest = max(low, high - sum(heights))
    # Without the heights of the boxes below, the centers must only be in order.
    shifted = [center - shift for center, shift in zip(wanted, below, strict=True)]
    found = isotonic_regression(shifted, y_min=low, y_max=highest)
    return [float(center) + shift for center, shift in zip(found, below, strict=True)]


def _write(
    axes: Axes,
    label: Label,
    offset: tuple[float, float],
    across: int,
    up: int,
    line: bool = False,
) -> Annotation:
    """Write a label at an offset in points from its point, with a line if wanted."""
    arrow = {"arrowstyle": "-", "color": label.color, "linewidth": 0.5, "relpos": (0, 0.5)}
    # Dotted, as intervals are solid.
    arrow |= {"linestyle": (0, (1, 2)), "shrinkA": 1, "shrinkB": 2}
    text = axes.annotate(
        wrapped(label.text),
        (label.x, label.y),
        offset,
        textcoords="offset points",
        fontsize=FONT_SIZE,
        ha=ALIGNMENT[across][0],
        va=ALIGNMENT[up][1],
        linespacing=1.05,
        arrowprops=arrow if line else None,
        path_effects=HALO,
        zorder=5,
    )
    # The panel must keep its size, or the label would move.
    text.set_in_layout(False)
    return text


def _renderer(figure: Figure) -> RendererBase:
    """A renderer that measures text, after all panels are laid out."""
    canvas = FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    renderer: RendererBase = canvas.get_renderer()  # type: ignore[no-untyped-call]
    return renderer


def columns(
    figure: Figure, rows: int, per_row: int, width: float
) -> Iterator[tuple[Axes, Axes | None]]:
    """Panels from the upper left, each with empty axes beside it if `width` is not 0."""
    ratios = [1.0, width] * per_row if width else [1.0] * per_row
    grid = figure.add_gridspec(rows, len(ratios), width_ratios=ratios)
    step = len(ratios) // per_row
    for row in range(rows):
        for place in range(0, len(ratios), step):
            panel, column = figure.add_subplot(grid[row, place]), None
            if width:
                column = figure.add_subplot(grid[row, place + 1])
                column.set_axis_off()
            yield panel, column

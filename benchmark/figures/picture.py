"""What figures share: a look for papers, also in grey, grids of panels and images, and files."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from numpy.typing import NDArray

from bdbench.records.parts import RecordedSpec
from bdbench.storage.atomic import write_atomically
from bdbench.tables.groups import EXCLUDED_FLAGS, Group
from bdbench.tables.text import as_csv

Place = tuple[str, str]
FORMATS = ("png", "svg")
DPI = 300
COLUMN, PAGE = 3.4, 7.0
"""Widths of a column and of both columns of a page, inches."""
ABREAST = 4
"""Panels beside each other."""
IMAGES = 8
"""Images beside each other."""
GAP = 0.06
"""Between images; an image and a gap are 1 wide."""
LETTERS = 20
"""Letters of a caption per inch."""
NO_BREAK = "\N{NO-BREAK SPACE}"

# Black, and the ten colours of Petroff (2021, arXiv:2107.02270), chosen for colour-blind readers.
# In grey, markers and line styles tell them apart.
COLOURS = (
    *("#000000", "#3f90da", "#e76300", "#832db6", "#ffa90e", "#bd1f01"),
    *("#717581", "#a96b59", "#92dadd", "#b9ac70", "#94a4a2"),
)
MARKERS = "osD^vPX<>ph"
DASHES = ((), (5, 1.5), (5, 1.5, 1, 1.5), (1, 1.5), (5, 1.5, 1, 1.5, 1, 1.5))

_LOOK = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.5,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.columnspacing": 1.5,
    "legend.handletextpad": 0.4,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
    "text.parse_math": False,
    # Without it, names inside an SVG are random.
    "svg.hashsalt": "bdbench",
}


def look() -> AbstractContextManager[None]:
    """The context in which figures are drawn and encoded. It hides the user's settings of
    matplotlib."""
    context: AbstractContextManager[None] = style.context(["default", _LOOK])
    return context


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure, its data, and lines for the user on what it leaves out.

    subject: what tells its file from those of other figures of its kind
    """

    figure: Figure
    data: pd.DataFrame
    remarks: tuple[str, ...] = ()
    subject: str = ""

    def write(self, folder: Path, name: str, formats: Sequence[str]) -> list[Path]:
        """`<folder>/<name>.csv`, with six significant digits, and a picture in each format.

        Returns the paths. Raises `InvalidInput` for an unwritable folder.
        """
        contents = {"csv": as_csv(self.data).encode()}
        contents |= {each: encode(self.figure, each) for each in formats}
        paths = [folder / f"{name}.{suffix}" for suffix in contents]
        for path, content in zip(paths, contents.values(), strict=True):
            write_atomically(path, content)
        return paths


def encode(figure: Figure, suffix: str) -> bytes:
    """The content of a picture file, without a date. `suffix` is png, pdf or svg."""
    content = io.BytesIO()
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(suffix)
    figure.savefig(content, format=suffix, dpi=DPI, metadata=metadata)
    return content.getvalue()


def grid(
    places: Collection[Place], rows: Mapping[str, str], height: float, below: str
) -> tuple[Figure, dict[Place, Axes]]:
    """Panels at these places, each a row and a column, with the names of the columns on top.

    More columns than `ABREAST` continue below, with those rows that they have panels in.

    rows: labels of the rows, in order
    height: of a panel, inches
    below: label of the x axis, which counts
    """
    columns = list(dict.fromkeys(column for _, column in places))
    abreast = -(-len(columns) // -(-len(columns) // ABREAST))
    bands = [columns[start : start + abreast] for start in range(0, len(columns), abreast)]
    lines = [
        (row, band)
        for band in bands
        for row in rows
        if any((row, column) in places for column in band)
    ]
    width = COLUMN if abreast <= 2 else PAGE
    figure = Figure((width, height * len(lines) + 0.25 * len(bands) + 0.5), layout="constrained")
    cells = figure.add_gridspec(len(lines), abreast)
    panels: dict[Place, Axes] = {}
    lowest: dict[int, Axes] = {}
    named = set()
    for number, (row, band) in enumerate(lines):
        labelled = False
        for place, column in enumerate(band):
            if (row, column) not in places:
                continue
            other = next(iter(panels.values()), None)
            axes = figure.add_subplot(cells[number, place], sharex=other)
            axes.tick_params(labelleft=not labelled, labelbottom=False)
            if not labelled:
                axes.set_ylabel(rows[row])
            if column not in named:
                axes.set_title(stacked(column, int(width / abreast * 12)))
            labelled = True
            named.add(column)
            panels[row, column] = lowest[place] = axes
    for axes in lowest.values():
        axes.tick_params(labelbottom=True)
        axes.set_xlabel(below)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10], integer=True))
    return figure, panels


@dataclass(frozen=True, eq=False)
class ImageRows:
    """Rows of images that share their columns.

    rows: by the label of a row, uint8 (n, 3, height, width)
    titles: above the n columns
    notes: below the n columns, or empty
    """

    rows: Mapping[str, NDArray[np.uint8]]
    titles: Sequence[str]
    notes: Sequence[str] = ()

    @property
    def step(self) -> float:
        """From one row to the next, where a column and its gap are 1 wide."""
        height, width = next(iter(self.rows.values())).shape[2:]
        return float(height / width) * (1 - GAP) + GAP

    def bands(self) -> Iterator[ImageRows]:
        """The same with at most `IMAGES` columns each, about as many in each."""
        bands = -(-len(self.titles) // IMAGES)
        abreast = -(-len(self.titles) // bands)
        for start in range(0, len(self.titles), abreast):
            part = slice(start, start + abreast)
            rows = {label: images[part] for label, images in self.rows.items()}
            yield ImageRows(rows, self.titles[part], self.notes[part])


def image_grid(
    blocks: Sequence[ImageRows], wrap: Callable[[str, int], str] = textwrap.fill
) -> Figure:
    """Blocks of images below each other, with room for a caption of two lines.

    wrap: breaks a title into lines of at most so many letters
    """
    bands = [band for block in blocks for band in block.bands()]
    abreast = max(len(band.titles) for band in bands)
    # A few images do not fill the width.
    width, span = (COLUMN, max(3, abreast)) if abreast <= IMAGES // 2 else (PAGE, max(6, abreast))
    side = 0.94 * width / span
    titles = [[wrap(title, int(side * 18)) for title in band.titles] for band in bands]
    lines = sum(max(title.count("\n") + 1 for title in each) for each in titles)
    lines += sum(bool(band.notes) for band in bands)
    heights = [len(band.rows) * band.step for band in bands]
    size = width, side * sum(heights) + 0.12 * lines + 0.1 * len(bands) + 0.4
    figure = Figure(size, layout="compressed")
    cells = figure.add_gridspec(len(bands), 1, height_ratios=heights)
    for number, band in enumerate(bands):
        axes = figure.add_subplot(cells[number], xlim=(0, span), aspect="equal", anchor="W")
        _draw_images(axes, replace(band, titles=titles[number]), int(side * band.step * 18))
    return figure


def _draw_images(axes: Axes, band: ImageRows, letters: int) -> None:
    """letters: of a line of a label beside a row"""
    wide, tall = 1 - GAP, band.step - GAP
    lefts, tops = range(len(band.titles)), [n * band.step for n in range(len(band.rows))]
    for top, images in zip(tops, band.rows.values(), strict=True):
        for left, image in zip(lefts, images, strict=True):
            axes.imshow(np.moveaxis(image, 0, -1), extent=(left, left + wide, top + tall, top))
    bottom = tops[-1] + tall
    below: dict[str, Any] = {"ha": "center", "va": "top", "fontsize": 6.5}
    for left, note in zip(lefts, band.notes, strict=False):
        axes.text(left + wide / 2, bottom + GAP, note, **below)
    axes.set_ylim(bottom, 0)
    axes.set_xticks([left + wide / 2 for left in lefts], band.titles, fontsize=6.5)
    middles = [top + tall / 2 for top in tops]
    labels = [textwrap.fill(label, max(letters, 1), break_long_words=False) for label in band.rows]
    centred: dict[str, Any] = {"va": "center", "multialignment": "center"}
    axes.set_yticks(middles, labels, fontsize=6.5, rotation=90, **centred)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.grid(False)
    axes.spines[:].set_visible(False)


def stacked(text: str, letters: int) -> str:
    """A spec with each of its fields on a line, or on several if it has more letters."""
    given = RecordedSpec.of(text)
    lines = [given.name, *(f"{key}={value!r}" for key, value in given.fields.items())]
    return "\n".join(textwrap.fill(line, letters) for line in lines)


def mark(rank: int) -> dict[str, Any]:
    """The marker of a defense by its rank in the folder: a hundred differ from each other."""
    color, shape, _ = _appearance(rank)
    return {"linestyle": "", "marker": shape, "color": color, "markersize": 6}


def line_style(rank: int, size: float) -> dict[str, Any]:
    """The line of a defense, in the colour of its `mark`.

    size: of its markers, points
    """
    color, shape, dashes = _appearance(rank)
    return {"color": color, "marker": shape, "dashes": dashes, "markersize": size}


def _appearance(rank: int) -> tuple[str, str, tuple[float, ...]]:
    """Colour, marker and dashes. Once all colours are used, they come with the next ones."""
    turn, place = divmod(rank, len(COLOURS))
    shift = place + turn
    return COLOURS[place], MARKERS[shift % len(MARKERS)], DASHES[shift % len(DASHES)]


def asr_axis(axes: Axes) -> None:
    """ASR in percent. Most defenses leave a few percent, which look alike on a linear axis."""
    axes.set_yscale("symlog", linthresh=1, linscale=0.5)
    axes.set(ylabel="ASR (%)", ylim=(-0.15, 140), yticks=[0, 1, 10, 100])
    axes.set_yticks([*range(2, 10), *range(20, 100, 10)], minor=True)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def legend(figure: Figure, looks: Mapping[str, Mapping[str, Any]]) -> None:
    """A legend above the panels, which keep their size. `looks` has the properties of a line by
    name."""
    letters = int(figure.get_figwidth() * 13)
    names = [textwrap.fill(name, letters - 6) for name in looks]
    handles = [
        Line2D([], [], label=name, **look) for name, look in zip(names, looks.values(), strict=True)
    ]
    abreast = max(1, letters // (6 + max(map(len, names))))
    more = -(-len(names) // abreast) - 1
    figure.set_figheight(figure.get_figheight() + 0.14 * more)
    figure.legend(handles=handles, loc="outside upper center", ncols=abreast)


def caption(figure: Figure, groups: Sequence[Group], seeds: Iterable[int], *sentences: str) -> None:
    """Small print below: data set, model, epochs, seeds, the sentences, and what is left out.

    seeds: how many each line or point that is drawn stands on
    """
    names = groups[0].names
    recipes = [group.records[0].cell.recipe.fields for group in groups]
    epochs = " or ".join(dict.fromkeys(str(fields.get("epochs", "?")) for fields in recipes))
    counts = sorted(set(seeds))
    parts = [
        names["dataset"],
        names["model"],
        several(epochs, "epoch"),
        f"{counts[0]} to " * (len(counts) > 1) + several(counts[-1], "seed"),
    ]
    excluded = (
        sentence
        for flag in (*sorted(EXCLUDED_FLAGS), "failed")
        for sentence in left_out(
            flag.replace("_", " "), ((group, len(group.flagged.get(flag, ()))) for group in groups)
        )
    )
    text = ". ".join([", ".join(parts), *sentences, *excluded])
    write_caption(figure, f"{text}.")


def write_caption(figure: Figure, text: str) -> None:
    """Small print below a figure."""
    letters = int(figure.get_figwidth() * LETTERS)
    lines = "\n".join(textwrap.fill(line, letters) for line in text.splitlines())
    figure.supxlabel(lines, x=0.01, ha="left", fontsize=6.5, color="#333333", linespacing=1.3)


def left_out(why: str, counts: Iterable[tuple[Group, int]]) -> list[str]:
    """A sentence on the records that a figure leaves out, if there are any.

    counts: groups, and how many of the records of each
    """
    those = []
    for group, count in counts:
        of = len(group.records)
        share = f" ({count} of {several(of, 'seed')})" if of > 1 else ""
        if count:
            those.append(f"{group.names['defense']} on {group.names['attack']}{share}")
    return [f"Left out, {why}: {', '.join(those)}"] if those else []


def several(count: Any, noun: str) -> str:
    """Such as `1 seed` and `3 seeds`, which no line break separates."""
    return f"{count}{NO_BREAK}{noun}{'s' * (str(count) != '1')}"

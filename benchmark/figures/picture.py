"""What all figures share: the look of a paper that is printed in grey, and their files."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from bdbench.models.plugins.spec import Spec
from bdbench.storage.atomic import write_atomically
from bdbench.tables.groups import Group
from bdbench.tables.text import as_csv

Place = tuple[str, str]
FORMATS = ("png", "svg")
DPI = 300
COLUMN, PAGE = 3.4, 7.0
"""Widths of a column and of both columns of a page, inches."""
ABREAST = 4
"""Panels beside each other."""
LETTERS = 20
"""Of a caption, to the inch."""
NO_BREAK = "\N{NO-BREAK SPACE}"

# Black, and the ten of Petroff (2021, arXiv:2107.02270), chosen for the colour-blind. In grey,
# markers and line styles tell them apart.
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


def look(own: Mapping[str, Any] = _LOOK) -> AbstractContextManager[None]:
    """In it, figures are drawn and encoded, whatever the user's settings of matplotlib. `own` are
    settings other than its defaults."""
    context: AbstractContextManager[None] = style.context(["default", dict(own)])
    return context


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure, the data in it, and lines that tell the user what is not in it."""

    figure: Figure
    data: pd.DataFrame
    remarks: tuple[str, ...] = ()

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
    """The content of a picture file, without the date of its making."""
    content = io.BytesIO()
    metadata = {"Date": None} if suffix == "svg" else None
    figure.savefig(content, format=suffix, dpi=DPI, metadata=metadata)
    return content.getvalue()


def grid(
    places: Collection[Place], rows: Mapping[str, str], height: float, below: str
) -> tuple[Figure, dict[Place, Axes]]:
    """Panels at these places, a row and a column each, with the names of the columns on top.

    More columns than `ABREAST` go on below, with the rows again that they have panels in.

    rows: their labels, in order
    height: of a panel, inches
    below: label of what the columns have in common, which is counted
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


def stacked(text: str, letters: int) -> str:
    """A spec with each of its fields on a line, or on several where it has more letters."""
    given = Spec.of(text)
    lines = [given.name, *(f"{key}={value!r}" for key, value in given.fields.items())]
    return "\n".join(textwrap.fill(line, letters) for line in lines)


def mark(rank: int) -> dict[str, Any]:
    """How the points of a defense look, by its rank in the folder: no two of a hundred alike."""
    turn, place = divmod(rank, len(COLOURS))
    shape, color = MARKERS[(place + turn) % len(MARKERS)], COLOURS[place]
    return {"linestyle": "", "marker": shape, "color": color, "markersize": 6}


def asr_axis(axes: Axes) -> None:
    """ASR in percent. Most defenses leave a few, which a linear axis would not tell apart."""
    axes.set_yscale("symlog", linthresh=1, linscale=0.5)
    axes.set(ylabel="ASR (%)", ylim=(-0.15, 140), yticks=[0, 1, 10, 100])
    axes.set_yticks([*range(2, 10), *range(20, 100, 10)], minor=True)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def legend(figure: Figure, looks: Mapping[str, Mapping[str, Any]]) -> None:
    """Above the panels, which keep their size: what lines look like by their names."""
    letters = int(figure.get_figwidth() * 13)
    names = [textwrap.fill(name, letters - 6) for name in looks]
    handles = [
        Line2D([], [], label=name, **look) for name, look in zip(names, looks.values(), strict=True)
    ]
    abreast = max(1, letters // (6 + max(map(len, names))))
    more = -(-len(names) // abreast) - 1
    figure.set_figheight(figure.get_figheight() + 0.14 * more)
    figure.legend(handles=handles, loc="outside upper center", ncols=abreast)


def caption(figure: Figure, groups: Sequence[Group], *sentences: str) -> None:
    """Small print below: data set, model, epochs and seeds, the sentences, and what is left out."""
    names = groups[0].names
    recipes = [Spec.of(group.records[0].cell["recipe"]).fields for group in groups]
    epochs = " or ".join(dict.fromkeys(str(fields.get("epochs", "?")) for fields in recipes))
    seeds = {record.cell["seed"] for group in groups for record in group.used}
    parts = [
        names["dataset"],
        names["model"],
        several(epochs, "epoch"),
        several(len(seeds), "seed"),
    ]
    text = ". ".join([", ".join(parts), *sentences, *_left_out(groups)])
    write_caption(figure, f"{text}.")


def write_caption(figure: Figure, text: str) -> None:
    """Small print below a figure."""
    lines = textwrap.fill(text, int(figure.get_figwidth() * LETTERS))
    figure.supxlabel(lines, x=0.01, ha="left", fontsize=6.5, color="#333333", linespacing=1.3)


def _left_out(groups: Sequence[Group]) -> list[str]:
    found = []
    for flag in ("not_finite", "failed"):
        those = []
        for group in groups:
            count, of = len(group.flagged.get(flag, ())), len(group.records)
            share = f" ({count} of {several(of, 'seed')})" if of > 1 else ""
            if count:
                those.append(f"{group.names['defense']} on {group.names['attack']}{share}")
        if those:
            found.append(f"Left out, {flag.replace('_', ' ')}: {', '.join(those)}")
    return found


def several(count: Any, noun: str) -> str:
    """Such as `1 seed` and `3 seeds`, on one line."""
    return f"{count}{NO_BREAK}{noun}{'s' * (str(count) != '1')}"

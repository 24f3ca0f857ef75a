"""A table of the paper as text, in Markdown and LaTeX: cells under two rows of headings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from bdbench.tables.numbers import MISSING, markdown_table
from bdbench.tables.text import as_latex, as_markdown


@dataclass(frozen=True)
class TableCell:
    """One cell of a table, as text.

    ours: our number with its interval, or `MISSING`
    paper: the printed number and the difference (ours minus paper); empty if not printed
    best, tied: see `CellSummary.standing`
    marks: those of `leaderboard.FOOTNOTES` or `paper.CONTENTION`
    """

    ours: str
    paper: str = ""
    best: bool = False
    tied: bool = False
    marks: str = ""

    def markdown(self) -> str:
        """The cell in Markdown."""
        return self._joined(f"**{self.ours}**" if self.best else self.ours)

    def latex(self) -> str:
        """The cell in LaTeX."""
        ours, rest = map(_with_minus, (as_latex(self.ours), as_latex(self._joined(""))))
        return " ".join(filter(None, (f"\\textbf{{{ours}}}" if self.best else ours, rest)))

    def _joined(self, ours: str) -> str:
        paper = f"({self.paper})" if self.paper else ""
        return " ".join(part for part in (ours, "~" * self.tied, self.marks, paper) if part)


NOTHING = TableCell(MISSING)


@dataclass(frozen=True)
class PaperTable:
    """A table with its title and footnotes.

    corner: headings of the label columns, one or two
    columns: heading and subheading of each further column
    rows: labels, one per heading in `corner`, and cells
    """

    title: str
    corner: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[tuple[str, ...], tuple[TableCell, ...]], ...]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """Title, table and footnotes in Markdown."""
        headers = [*self.corner, *(" ".join(filter(None, pair)) for pair in self.columns)]
        rows = [
            [*map(as_markdown, labels), *(cell.markdown() for cell in cells)]
            for labels, cells in self.rows
        ]
        align = [*("left" for _ in self.corner), *("right" for _ in self.columns)]
        table = markdown_table(list(map(as_markdown, headers)), rows, align)
        notes = "\n".join(f"- {as_markdown(note)}" for note in self.notes)
        title = f"## {as_markdown(self.title)}"
        return "\n\n".join(part for part in (title, table, notes) if part)

    def latex(self, legend: str = "") -> str:
        """A table environment.

        legend: how to read it, at the end of the caption; its markup for bold is left out
        """
        frame = pd.DataFrame(
            [[cell.latex() for cell in cells] for _, cells in self.rows],
            index=_labels([labels for labels, _ in self.rows], self.corner),
            columns=pd.MultiIndex.from_tuples(
                [(as_latex(above), as_latex(below)) for above, below in self.columns]
            ),
        )
        sentences = [*(f"{part}." for part in (self.title, *self.notes)), legend.replace("**", "")]
        caption = as_latex(" ".join(sentences))
        text: str = frame.style.to_latex(
            hrules=True,
            caption=caption,
            column_format="l" * len(self.corner) + "r" * len(self.columns),
            multicol_align="c",
            position_float="centering",
        )
        return f"% Needs \\usepackage{{booktabs}} and \\usepackage{{multirow}}.\n{text}"


def _with_minus(latex: str) -> str:
    """LaTeX whose negative numbers have a minus and no hyphen."""
    return re.sub(r"(?<![\w.])-(?=\d)", "$-$", latex)


def _labels(rows: Sequence[tuple[str, ...]], corner: tuple[str, ...]) -> pd.Index[str]:
    escaped = [tuple(map(as_latex, labels)) for labels in rows]
    names = list(map(as_latex, corner))
    if len(corner) == 1:
        return pd.Index([label for (label,) in escaped], name=names[0])
    return pd.MultiIndex.from_tuples(escaped, names=names)

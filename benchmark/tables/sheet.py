"""A table of the paper as text, in Markdown and LaTeX: cells under two rows of headings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from bdbench.tables.numbers import MISSING, markdown_table
from bdbench.tables.tabular import Tabular, environment, headings, row, sentence
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
        columns = [*(("", name) for name in self.corner), *self.columns]
        lines = [*headings(columns), r"\midrule"]
        above: Sequence[str] = ()
        for labels, cells in self.rows:
            shown = [*map(as_latex, _without_repeats(labels, above))]
            lines.append(row([*shown, *(cell.latex() for cell in cells)]))
            above = labels
        known = {heading for heading, _ in columns}.union(*(labels for labels, _ in self.rows))
        sentences = [sentence(note, known) for note in self.notes]
        caption = " ".join([f"{self.title}.", *sentences, legend.replace("**", "")]).strip()
        alignment = "l" * len(self.corner) + "r" * len(self.columns)
        return environment(Tabular(alignment, lines), caption)


def _without_repeats(labels: Sequence[str], above: Sequence[str]) -> list[str]:
    """The labels of a row, empty up to the first that differs from the row above."""
    same = 0
    while same < len(labels) - 1 and labels[: same + 1] == above[: same + 1]:
        same += 1
    return [""] * same + [*labels[same:]]


def _with_minus(latex: str) -> str:
    """LaTeX whose negative numbers have a minus and no hyphen."""
    return re.sub(r"(?<![\w.])-(?=\d)", "$-$", latex)

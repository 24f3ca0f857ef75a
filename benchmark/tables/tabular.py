"""A table environment in LaTeX: captions, merged headings, rows."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from bdbench.tables.text import as_latex

ONE_COLUMN = 9
"""Table columns that fit in one column of a two-column page."""
CODE = re.compile(r"[(_]")


@dataclass(frozen=True)
class Tabular:
    """The inside of a table in LaTeX.

    alignment: "l" or "r" for each column
    lines: rows, see `row`, and rules, without the outer ones
    """

    alignment: str
    lines: Sequence[str]


def environment(tabular: Tabular, caption: str, short_caption: str = "", label: str = "") -> str:
    """A table environment, which shrinks to the width of the page. Captions are plain text."""
    kind = "table*" if len(tabular.alignment) > ONE_COLUMN else "table"
    # Braces, as a bracket in a title would end the argument.
    short = f"[{{{as_latex(short_caption)}}}]" if short_caption else ""
    lines = [
        r"% Needs \usepackage{booktabs} and \usepackage{adjustbox}.",
        f"\\begin{{{kind}}}",
        r"\centering",
        f"\\caption{short}{{{as_latex(caption)}}}",
        *([f"\\label{{{label}}}"] if label else []),
        r"\begin{adjustbox}{max width=\linewidth}",
        f"\\begin{{tabular}}{{{tabular.alignment}}}",
        r"\toprule",
        *tabular.lines,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{adjustbox}",
        f"\\end{{{kind}}}",
    ]
    return "\n".join(lines) + "\n"


def row(cells: Iterable[str]) -> str:
    """A row of cells, which are LaTeX."""
    first, *others = cells
    # After a line break, LaTeX reads these as the options of the break.
    guarded = f"{{}}{first}" if first.startswith(("[", "*")) else first
    return " & ".join([guarded, *others]) + r" \\"


def headings(columns: Sequence[tuple[str, str]]) -> Iterator[str]:
    """The rows of headings and subheadings, with a rule below each merged heading."""
    above: list[str] = []
    rules: list[str] = []
    first = 0
    while first < len(columns):
        text = columns[first][0]
        last = first
        while text and last + 1 < len(columns) and columns[last + 1][0] == text:
            last += 1
        span = last - first + 1
        above.append(f"\\multicolumn{{{span}}}{{c}}{{{as_latex(text)}}}" if text else "")
        rules += [f"\\cmidrule(lr){{{first + 1}-{last + 1}}}"] if text else []
        first = last + 1
    if rules:
        yield row(above)
        yield " ".join(rules)
    yield row([as_latex(subheading) for _, subheading in columns])


def sentence(note: str, known: Collection[str]) -> str:
    """A footnote as a sentence of a caption. A spec or a name at its beginning stays as it is.

    known: specs of the attacks and defenses in the table
    """
    first = note.partition(" ")[0].rstrip(":")
    is_code = CODE.search(first) or first in {spec.partition("(")[0] for spec in known}
    return f"{note if is_code else note[:1].upper() + note[1:]}".rstrip(".") + "."

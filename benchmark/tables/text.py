"""Words of others as text of a table, and of nothing else: in Markdown, LaTeX and CSV.

Labels, notes and messages come from plugins and from records of others. Whatever they hold, a
reader sees it as it stands. HTML is escaped by the templates, a terminal's commands by `visible`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from bdbench.models.plugins.errors import visible

if TYPE_CHECKING:
    import pandas as pd

_MARKUP = re.compile(r"[\\`*<>\[\]~|&]|(?<![^\W_])_|_(?![^\W_])|^[-+=#](?=\s|$)")
"""What Markdown takes for more than itself; an underscore inside of a word is one."""
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
"""Also where a reader of Markdown passes HTML on before it looks for escapes."""
_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "~": r"$\sim$",
    "±": r"$\pm$",
    "†": r"\dag{}",
    "¶": r"\P{}",
    "‡": r"\ddag{}",
    "⊘": r"$\oslash$",
    "§": r"\S{}",
    "‖": r"$\parallel$",
    "·": r"$\cdot$",
    "°": r"$^\circ$",
    "◊": r"$\diamond$",
}
_FORMULA = tuple("=+-@")


def as_markdown(text: str) -> str:
    """One line of Markdown, without markup."""
    return _MARKUP.sub(lambda m: _ENTITIES.get(m[0], f"\\{m[0]}"), _line(text))


def as_latex(text: str) -> str:
    """One line of LaTeX, without commands."""
    return "".join(_LATEX.get(character, character) for character in _line(text))


def as_csv(frame: pd.DataFrame) -> str:
    """Six significant digits, and nothing for nan. A text is one line, and has an apostrophe
    before it where a spreadsheet would take it for a formula; numbers are as they are."""
    texts = {
        str(name): type(column)(map(_cell, column), column.index, dtype=object)
        for name, column in frame.items()
        if column.dtype.kind not in "biuf"
    }
    safe = frame.assign(**texts)
    return safe.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def _line(text: str) -> str:
    return visible(" ".join(text.split()))


def csv_field(text: str) -> str:
    """One line of text that no spreadsheet takes for a formula."""
    text = text if text.isprintable() else _line(text)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _cell(value: object) -> object:
    return csv_field(value) if isinstance(value, str) else value

"""Untrusted text in tables, escaped for Markdown, LaTeX and CSV.

Labels, notes and messages come from plugins and from other people's records. Escaping shows them
literally. Templates escape HTML, and `visible` escapes terminal control sequences.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import TYPE_CHECKING

from bdbench.models.plugins.errors import visible

if TYPE_CHECKING:
    import pandas as pd

_MARKUP = re.compile(r"[\\`*<>\[\]~|&]|(?<![^\W_])_|_(?![^\W_])|^[-+=#](?=\s|$)")
"""Text that is markup in Markdown; an underscore inside a word is not."""
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
"""Escapes that also hold in a Markdown reader that passes HTML on first."""
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
    "\N{MINUS SIGN}": "$-$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≠": r"$\neq$",
    "≈": r"$\approx$",
    "→": r"$\to$",
    "←": r"$\leftarrow$",
    "∞": r"$\infty$",
    "∈": r"$\in$",
}
_GREEK = (
    "alpha beta gamma delta varepsilon zeta eta theta iota kappa lambda mu nu xi o pi rho "
    "varsigma sigma tau upsilon varphi chi psi omega",
    "A B Gamma Delta E Z H Theta I K Lambda M N Xi O Pi P - Sigma T Upsilon Phi X Psi Omega",
)
"""The small and the capital letters in the order of Unicode; LaTeX has no names for those that are
Latin letters."""
_LATEX |= {
    chr(first + place): name if len(name) == 1 else f"$\\{name}$"
    for first, letters in zip((0x3B1, 0x391), _GREEK, strict=True)
    for place, name in enumerate(letters.split())
}
_LATIN = 0x180
"""The first character that pdflatex does not know without a package, but for those above."""
_FORMULA = tuple("=+-@\N{FULLWIDTH EQUALS SIGN}\N{FULLWIDTH PLUS SIGN}\N{FULLWIDTH COMMERCIAL AT}")


def as_markdown(text: str) -> str:
    """Text as one line of Markdown without markup."""
    return _MARKUP.sub(lambda m: _ENTITIES.get(m[0], f"\\{m[0]}"), _line(text))


def as_latex(text: str) -> str:
    """Text as one line of LaTeX without commands. Letters of other scripts than Latin and Greek
    stay, and need a LaTeX that reads them."""
    return "".join(map(_latex, unicodedata.normalize("NFC", _line(text))))


@cache
def _latex(character: str) -> str:
    """A character in LaTeX. For one that pdflatex does not know, those that it stands for, without
    accents; it stays if they are not known either."""
    if character in _LATEX or ord(character) < _LATIN:
        return _LATEX.get(character, character)
    parts = unicodedata.normalize("NFKD", character)
    plain = [part for part in parts if not unicodedata.combining(part)]
    known = all(part in _LATEX or part.isascii() for part in plain)
    return "".join(map(_latex, plain)) if known else character


def as_csv(frame: pd.DataFrame) -> str:
    """A table as CSV: six significant digits, empty for nan, text as in `csv_field`."""
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
    """Text as one line, with a leading apostrophe if a spreadsheet would run it as a formula."""
    text = text if text.isprintable() else _line(text)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _cell(value: object) -> object:
    return csv_field(value) if isinstance(value, str) else value

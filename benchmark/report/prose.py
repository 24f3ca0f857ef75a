"""Docstrings and messages as HTML: paragraphs, lists and code.

This is the only place that turns text into markup. HTML, links and images in the text are escaped.
"""

from __future__ import annotations

import re
from functools import cache

from markdown_it import MarkdownIt
from markupsafe import Markup, escape

from bdbench.models.plugins.errors import shown

RULES = ("backticks", "code", "fence", "list")
"""The Markdown rules that apply, beside paragraphs."""
_FIELD = re.compile(r"(?P<names>\w+(?:, \w+)*): (?P<text>.*)")


def prose(text: str) -> Markup:
    """Text with paragraphs and lists as HTML."""
    return Markup(_reader().render(shown(text.expandtabs(4))))


def inline(text: str) -> Markup:
    """Text as one line of HTML, such as a message."""
    line = shown(" ".join(text.split()))
    if "`" not in line:  # faster: most texts have no code
        return escape(line)
    return Markup(_reader().renderInline(line))


def first_paragraph(text: str) -> str:
    """The first paragraph as one line; empty for empty text."""
    return " ".join(text.strip().split("\n\n")[0].split())


def fields(text: str) -> list[tuple[str, str]]:
    """(names, description) of the settings in a docstring.

    A setting is a line `name: text` and the indented lines after it. Other lines have no name.
    """
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        field = _FIELD.fullmatch(line)
        if field:
            found.append((field["names"], [field["text"]]))
        elif found and line.startswith(" "):
            found[-1][1].append(line)
        elif line.strip():
            found.append(("", [line]))
    return [(names, " ".join(" ".join(lines).split())) for names, lines in found]


@cache
def _reader() -> MarkdownIt:
    return MarkdownIt("zero", {"html": False}).enable(list(RULES))

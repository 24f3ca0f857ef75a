"""Text of docstrings and messages as HTML: paragraphs, lists and code, and nothing else.

It is the only place that makes markup of text. HTML, links and pictures in it stay the characters
that they are.
"""

from __future__ import annotations

import re
from functools import cache

from markdown_it import MarkdownIt
from markupsafe import Markup, escape

from bdbench.models.plugins.errors import shown

RULES = ("backticks", "code", "fence", "list")
"""What is read of Markdown, beside paragraphs."""
_FIELD = re.compile(r"(?P<names>\w+(?:, \w+)*): (?P<text>.*)")


def prose(text: str) -> Markup:
    """Paragraphs and lists."""
    return Markup(_reader().render(shown(text.expandtabs(4))))


def inline(text: str) -> Markup:
    """One line, such as a message."""
    line = shown(" ".join(text.split()))
    if "`" not in line:  # nothing to read in most of the many texts of a page
        return escape(line)
    return Markup(_reader().renderInline(line))


def first_paragraph(text: str) -> str:
    """On one line; empty of an empty text."""
    return " ".join(text.strip().split("\n\n")[0].split())


def fields(text: str) -> list[tuple[str, str]]:
    """Names of settings and what a docstring says of them: lines `name: text`, which go on where
    the next ones are indented. Other lines have no name."""
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        given = _FIELD.fullmatch(line)
        if given:
            found.append((given["names"], [given["text"]]))
        elif found and line.startswith(" "):
            found[-1][1].append(line)
        elif line.strip():
            found.append(("", [line]))
    return [(names, " ".join(" ".join(lines).split())) for names, lines in found]


@cache
def _reader() -> MarkdownIt:
    return MarkdownIt("zero", {"html": False}).enable(list(RULES))

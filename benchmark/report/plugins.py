"""What the authors of attacks and defenses say about them, where these are not installed too."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bdbench.models.plugins.registry import file_of
from bdbench.records.record import Record
from bdbench.report.prose import fields, first_paragraph

PACKAGES = {"attack": "bdbench.attacks", "defense": "bdbench.defenses"}


@dataclass(frozen=True)
class Description:
    """about: the method, its source, its departures. settings: the fields. origin: see
    `Record.plugins`. All are docstrings as they are, or empty."""

    about: str = ""
    settings: str = ""
    origin: str = ""

    @property
    def summary(self) -> str:
        return first_paragraph(self.about or self.settings)

    @property
    def fields(self) -> list[tuple[str, str]]:
        return fields(self.settings)


def description(axis: str, name: str, records: Iterable[Record]) -> Description:
    """Of an attack or defense: what the latest of its records says, else what the file says that a
    built-in one has here; empty for any other.

    records: of cells with this plugin
    """
    telling = [record for record in records if record.plugins.get(axis)]
    if telling:
        latest = max(telling, key=lambda record: (str(record.measured["ended"]), record.key))
        return Description(**latest.plugins[axis])
    return built_in(axis, name)


def built_in(axis: str, name: str) -> Description:
    """From the file of a plugin that is named after it. It is read and not imported: that would
    take torch."""
    name = name.partition("(")[0]
    path = file_of(PACKAGES[axis], name)
    if not name.isidentifier() or not path.is_file():
        return Description()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for registered in _registered(tree, name):
        about, settings = (ast.get_docstring(node) or "" for node in (tree, registered))
        return Description(about, settings, "built in")
    return Description()


def _registered(tree: ast.Module, name: str) -> Iterator[ast.ClassDef]:
    """The class with this name in its decorator."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            decorators = map(ast.unparse, node.decorator_list)
            begin = f"register({name!r})", f"register({name!r},"
            if any(each.startswith(begin) for each in decorators):
                yield node

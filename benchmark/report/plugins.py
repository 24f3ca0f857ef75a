"""Descriptions of attacks and defenses by their authors, also of those that are not installed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bdbench.records.record import Record
from bdbench.report.prose import fields, first_paragraph
from bdbench.tables.source import docstrings

PACKAGES = {"attack": "bdbench.attacks", "defense": "bdbench.defenses"}


@dataclass(frozen=True)
class Description:
    """Docstrings of a plugin, unchanged, each empty if missing.

    about: the method, its source and its departures from it
    settings: the fields
    origin: where the plugin comes from, see `Record.plugins`
    """

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
    """The description of an attack or defense from its latest record that has one, otherwise from
    the source of a built-in plugin; empty for any other.

    records: those of cells with this plugin
    """
    described = [record for record in records if record.plugins[axis]]
    if described:
        latest = max(described, key=lambda record: (record.measured.ended, record.key))
        said = latest.plugins[axis]
        return Description(said.about, said.settings, said.origin)
    return built_in(axis, name)


def built_in(axis: str, name: str) -> Description:
    """The description of a built-in plugin from its source, which is read without importing torch;
    empty for any other plugin."""
    found = docstrings(PACKAGES[axis], name.partition("(")[0])
    return Description(*found, "built in") if found else Description()

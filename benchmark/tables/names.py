"""Titles of data sets, models, attacks and defenses as papers write them: CBD, BadNets 10 %.

A plugin states its title where it is registered. The title of a built-in plugin is read from its
source, that of any other from its records. A plugin without a title gets one from its name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.plugins.registry import LONGEST_TITLE
from bdbench.models.plugins.spec import Spec
from bdbench.records.record import Record
from bdbench.tables.groups import Group
from bdbench.tables.published import is_of_class
from bdbench.tables.source import titles

PACKAGES = {
    "dataset": "bdbench.datasets",
    "model": "bdbench.models.networks",
    "attack": "bdbench.attacks",
    "defense": "bdbench.defenses",
}


def declared(axis: str) -> Mapping[str, str]:
    """By name, the titles that the built-in plugins of an axis declare."""
    return titles(PACKAGES[axis])


def title_of(record: Record, axis: str) -> str:
    """The title of a record's data set, model, attack or defense, without its settings."""
    name = _read(str(record.cell[axis])).name
    own = record.provenance.titles.get(axis, "")
    fits = own.isprintable() and 0 < len(own) <= LONGEST_TITLE
    return declared(axis).get(name) or (own if fits else derived(name))


def derived(name: str) -> str:
    """The title of a plugin that declares none: `strong_cutout` becomes Strong cutout."""
    words = name.replace("_", " ").strip() or name
    return words[:1].upper() + words[1:]


def with_settings(group: Group, axis: str, omitted: Collection[str] = ()) -> str:
    """Title, poisoning rate, and in parentheses the settings in its table name. A rate that is a
    share of the target class is one "of class".

    omitted: settings that are stated elsewhere
    """
    record, fields = group.records[0], dict(_read(group.names[axis]).fields)
    title = title_of(record, axis)
    if axis == "attack" and not record.cell.attack.is_none:
        fields.pop("poisoning_rate", None)
        rate = record.cell.attack.fields.get("poisoning_rate")
        whole = " of class" * is_of_class(record.cell.attack)
        title += f" {100 * rate:g} %{whole}" if isinstance(rate, int | float) else ""
    shown = [f"{key}={value}" for key, value in fields.items() if key not in omitted]
    return f"{title} ({', '.join(shown)})" if shown else title


def names(groups: Iterable[Group], axis: str, omitted: Collection[str] = ()) -> dict[str, str]:
    """By table name, the title with settings; the table name itself where two would be equal."""
    found: dict[str, str] = {}
    for group in groups:
        found.setdefault(group.names[axis], with_settings(group, axis, omitted))
    texts = list(found.values())
    return {name: text if texts.count(text) == 1 else name for name, text in found.items()}


def _read(text: str) -> Spec:
    """Parse a spec; for invalid text, return what precedes its first parenthesis as a name."""
    try:
        return Spec.of(text)
    except InvalidInput:
        return Spec(text.partition("(")[0])

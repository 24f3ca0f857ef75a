"""Data sets, models, attacks and defenses as people write them, such as CBD and BadNets 10 %.

A plugin says its title where it is registered. That of a built-in one is read from its source, as
to import it is to import torch; that of another is in its records. Who says none has one derived.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from functools import cache

from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.plugins.registry import LONGEST_TITLE, file_of
from bdbench.models.plugins.spec import Spec
from bdbench.records.record import Record
from bdbench.tables.groups import Group, is_none

PACKAGES = {
    "dataset": "bdbench.datasets",
    "model": "bdbench.models.networks",
    "attack": "bdbench.attacks",
    "defense": "bdbench.defenses",
}
_TITLE = re.compile(r'^@register\("(\w+)", title="([^"\\]+)"\)$', re.MULTILINE)


@cache
def declared(axis: str) -> Mapping[str, str]:
    """Titles of the built-in plugins of a kind, by name."""
    package = file_of(PACKAGES[axis], "__init__").parent
    texts = (path.read_text("utf-8") for path in sorted(package.glob("*.py")))
    return dict(pair for text in texts for pair in _TITLE.findall(text))


def title_of(record: Record, axis: str) -> str:
    """What the data set, model, attack or defense of a record is called, without its settings."""
    name = _read(record.cell[axis]).name
    stored = record.provenance.get("titles")
    own = stored.get(axis) if isinstance(stored, dict) else None
    fits = isinstance(own, str) and own.isprintable() and 0 < len(own) <= LONGEST_TITLE
    return declared(axis).get(name) or (str(own) if fits else derived(name))


def derived(name: str) -> str:
    """A title for a plugin that has none: `strong_cutout` is Strong cutout."""
    words = name.replace("_", " ").strip() or name
    return words[0].upper() + words[1:]


def written(group: Group, axis: str, said: Collection[str] = ()) -> str:
    """Title, poisoning rate, and in brackets the settings that its name in tables shows.

    said: settings that are said elsewhere
    """
    record, fields = group.records[0], dict(_read(group.names[axis]).fields)
    title = title_of(record, axis)
    if axis == "attack" and not is_none(record.cell[axis]):
        fields.pop("poisoning_rate", None)
        rate = _read(record.cell[axis]).fields.get("poisoning_rate")
        title += f" {100 * rate:g} %" if isinstance(rate, int | float) else ""
    shown = [f"{key}={value}" for key, value in fields.items() if key not in said]
    return f"{title} ({', '.join(shown)})" if shown else title


def names(groups: Iterable[Group], axis: str, said: Collection[str] = ()) -> dict[str, str]:
    """By name in tables, how it is written; the spec itself where two would be written alike."""
    found: dict[str, str] = {}
    for group in groups:
        found.setdefault(group.names[axis], written(group, axis, said))
    texts = list(found.values())
    return {name: text if texts.count(text) == 1 else name for name, text in found.items()}


def _read(text: str) -> Spec:
    """A spec; of a text that is none, what stands where its name would."""
    try:
        return Spec.of(text)
    except InvalidInput:
        return Spec(text.partition("(")[0])

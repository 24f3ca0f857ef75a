"""What `bdbench explain` prints: everything that a record holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from bdbench.cli.columns import plain
from bdbench.records.by_class import ByClass
from bdbench.records.files import find, read
from bdbench.records.record import Record, encode
from bdbench.records.rerun import again
from bdbench.tables.groups import lent

SHOWN = {"schema", "key", "status", "cell", "metrics", "flags", "error", "classes"}
"""Parts of a record that have lines of their own, or need none."""
LONG = {"diagnostics", "curves", "measured", "provenance"}
"""Parts that come last."""


def explanation(key: str, results: Path | None) -> str:
    """The record whose key begins with `key`, as text. Raises `InvalidInput` for none or several.

    results: folder of the records, None for all folders in `results`
    """
    path = find(key, results)
    return _explain(read(path), path)


def _by_class(classes: ByClass, bare: bool) -> Iterator[tuple[str, ...]]:
    """By class: clean images that get their label, and triggered ones that get the goal.

    bare: whether there is no attack
    """
    yield "class", "test images", "correct", *["with the trigger, as the attack wants"] * (not bare)
    for n, name in enumerate(classes.names):
        own = classes.own(n)
        turned = classes.turned(n) if n in classes.victims else None
        shares = (f"{100 * each.rate:.1f} %" if each else "-" for each in (own, turned))
        yield name, f"{classes.images[n]:,}", *list(shares)[: 1 if bare else 2]


def _explain(record: Record, path: Path) -> str:
    parts = [f"cell {record.key}, {record.status}, {path}"]
    parts.append(plain((name, str(part)) for name, part in sorted(record.cell)))
    if record.metrics is not None:
        rows = [
            (name, f"{100 * count.rate:.2f} %", f"{count.hits:,} of {count.of:,}")
            for name, count in record.meaningful.items()
        ]
        parts.append(plain(rows))
    if record.worst_part:
        others = "attack_success_rate, robust_accuracy and asr_floor are those of the worst part"
        parts.append(f"{others}, {record.worst_part}")
    parts += [f"warning: {text}" for text in record.diagnostics.warnings]
    parts += [f"the defense {text}" for text in [lent(record)] if text]
    if record.flags:
        parts.append(f"flags: {', '.join(record.flags)}")
    if record.classes:
        parts.append(plain(_by_class(record.classes, record.cell.attack.is_none)))
    document = encode(record)
    if record.example:
        document["example"] = {**document["example"], "png": "a picture, which the report shows"}
    for title in sorted(document.keys() - SHOWN, key=lambda name: (name in LONG, name)):
        if content := document[title]:
            text = json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True)
            parts.append(f"{title}\n{text}")
    if record.error is not None:
        parts.append(record.error.traceback.rstrip())
    parts.append(f"to run it again:\n  {again(record, path.parent.parent)}")
    return "\n\n".join(parts)

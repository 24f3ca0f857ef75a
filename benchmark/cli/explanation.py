"""What `bdbench explain` prints: everything that a record holds."""

from __future__ import annotations

import json
from pathlib import Path

from bdbench.cli.columns import plain
from bdbench.records.files import find, read
from bdbench.records.record import Record, encode
from bdbench.records.rerun import again
from bdbench.tables.groups import lent


def explanation(key: str, results: Path | None) -> str:
    """The record whose key begins with `key`, as text. Raises `InvalidInput` for none or several.

    results: folder of the records, None for all folders in `results`
    """
    path = find(key, results)
    return _explain(read(path), path)


def _explain(record: Record, path: Path) -> str:
    parts = [f"cell {record.key}, {record.status}, {path}"]
    parts.append(plain((name, str(part)) for name, part in sorted(record.cell)))
    if record.metrics is not None:
        rows = [
            (name, f"{100 * count.rate:.2f} %", f"{count.hits:,} of {count.of:,}")
            for name, count in record.counts.items()
        ]
        parts.append(plain(rows))
    if record.worst_part:
        others = "attack_success_rate, robust_accuracy and asr_floor are those of the worst part"
        parts.append(f"{others}, {record.worst_part}")
    parts += [f"warning: {text}" for text in record.diagnostics.warnings]
    parts += [f"the defense {text}" for text in [lent(record)] if text]
    if record.flags:
        parts.append(f"flags: {', '.join(record.flags)}")
    document = encode(record)
    for title in ("passes", "diagnostics", "curves", "measured", "provenance"):
        if content := document[title]:
            text = json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True)
            parts.append(f"{title}\n{text}")
    if record.error is not None:
        parts.append(record.error.traceback.rstrip())
    parts.append(f"to run it again:\n  {again(record, path.parent.parent)}")
    return "\n\n".join(parts)

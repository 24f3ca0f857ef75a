"""What `bdbench explain` prints: everything that a record says."""

from __future__ import annotations

import json
from pathlib import Path

from bdbench.cli.columns import plain
from bdbench.records.files import find, read
from bdbench.records.record import Record
from bdbench.records.rerun import again
from bdbench.tables.groups import lent


def explanation(key: str, results: Path | None) -> str:
    """The record whose key begins with `key`. Raises `InvalidInput` for none or several."""
    path = find(key, results)
    return _explain(read(path), path)


def _explain(record: Record, path: Path) -> str:
    parts = [f"cell {record.key}, {record.status}, {path}"]
    parts.append(plain(record.cell.items()))
    if record.metrics is not None:
        rows = [
            (name, f"{100 * count.rate:.2f} %", f"{count.hits:,} of {count.of:,}")
            for name, count in record.metrics.items()
            if count is not None
        ]
        parts.append(plain(rows))
    parts += [f"warning: {text}" for text in record.diagnostics.get("warnings", ())]
    parts += [f"the defense {text}" for text in [lent(record)] if text]
    if record.flags:
        parts.append(f"flags: {', '.join(record.flags)}")
    for title in ("passes", "diagnostics", "curves", "measured", "provenance"):
        content = getattr(record, title)
        if content:
            parts.append(f"{title}\n{json.dumps(content, indent=2, ensure_ascii=False)}")
    if record.error is not None:
        parts.append(record.error["traceback"].rstrip())
    parts.append(f"run it again with\n  {again(record, path.parent.parent)}")
    return "\n\n".join(parts)

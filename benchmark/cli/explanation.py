"""What `bdbench explain` prints: everything that a record says."""

from __future__ import annotations

import json
from pathlib import Path

from bdbench.cli.columns import plain
from bdbench.models.plugins.errors import InvalidInput, check
from bdbench.records.files import read
from bdbench.records.record import Record
from bdbench.records.rerun import again
from bdbench.tables.groups import lent


def explanation(key: str, results: Path | None) -> str:
    """The record whose key begins with `key`. Raises `InvalidInput` for none or several."""
    folders = [results] if results else sorted(Path("results").glob("*"))
    # A key is no pattern and no path.
    wanted = f"{key}*.json" if key.isascii() and key.isalnum() else ""
    try:
        paths = [p for folder in folders if wanted for p in (folder / "records").glob(wanted)]
    except OSError as error:
        raise InvalidInput(f"cannot read {results}: {error.strerror or error}") from None
    where = ", ".join(map(str, folders)) or "results"
    check(bool(paths), f"no record {key!r} in {where}")
    names = sorted({path.stem for path in paths})
    check(len(names) == 1, f"{key!r} is short for {', '.join(names)}")
    return _explain(read(paths[0]), paths[0])


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

"""Text in columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tabulate import tabulate


def plain(rows: Iterable[Sequence[Any]], headers: Sequence[str] = ()) -> str:
    """Rows as aligned columns of text, with numbers exactly as given."""
    return tabulate(rows, headers=headers, tablefmt="plain", disable_numparse=True)

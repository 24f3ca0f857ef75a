"""A terminal on which the words of others are shown and never obeyed."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from bdbench.models.plugins.errors import shown


class Terminal(Console):
    """A console whose printed text stands as `shown` has it."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(shown(o) if isinstance(o, str) else o for o in objects), **options)

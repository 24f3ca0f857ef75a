"""A terminal that shows control sequences of untrusted text instead of obeying them."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from bdbench.models.plugins.errors import shown


class Terminal(Console):
    """A console that prints text as `shown` returns it."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(shown(o) if isinstance(o, str) else o for o in objects), **options)

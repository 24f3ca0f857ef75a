"""A terminal that shows control sequences of untrusted text instead of obeying them, and that falls
silent where nothing can be written any more."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any, NoReturn

from rich.console import Console

from bdbench.models.plugins.errors import shown


class Terminal(Console):
    """A console that prints text as `shown` returns it."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(shown(o) if isinstance(o, str) else o for o in objects), **options)

    def __exit__(self, *error: Any) -> None:
        """rich writes here whatever is printed or drawn. What a closed pipe or a full disk cannot
        take is lost, with all that follows; work goes on."""
        try:
            super().__exit__(*error)
        except OSError:
            self.quiet = True
            # Or else what is left in the buffer of the stream is an error at its end.
            with suppress(OSError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self.file.fileno())

    def on_broken_pipe(self) -> NoReturn:
        """rich calls it while it handles the error, and would leave the program."""
        raise

"""Plugin code in the process of a command: its mistakes are one line, and it changes nothing that
cells of other plugins get."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bdbench.machine.surroundings import surroundings_kept
from bdbench.models.plugins.blame import blaming, location, reason
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.plugins.registry import load_file


def load_plugin(path: Path) -> None:
    """Import a plugin file, which does not change the surroundings of this process. Raises
    `InvalidInput`, see `load_file`."""
    with surroundings_kept():
        load_file(path)


@contextmanager
def answering(what: str) -> Iterator[None]:
    """As `blaming`, also for a SystemExit: a mistake in a plugin does not end the command.

    what: the work inside the block, as the message begins
    """
    try:
        with blaming(what):
            yield
    except SystemExit as error:
        found = location(error)
        if found is None:
            raise
        file, line = found
        message = f"{what} failed at line {line} of {file}: {reason(error)}"
        raise InvalidInput(message, of_code=True) from error

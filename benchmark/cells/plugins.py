"""Plugin files in the process of a command: they change nothing that cells of other plugins get."""

from __future__ import annotations

from pathlib import Path

from bdbench.machine.surroundings import surroundings_kept
from bdbench.models.plugins.files import load_file


def load_plugin(path: Path) -> None:
    """Import a plugin file, which does not change the surroundings of this process. Raises
    `InvalidInput`, see `load_file`."""
    with surroundings_kept():
        load_file(path)

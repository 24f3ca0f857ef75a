"""The sources of plugin files, which must not change during a run: each worker imports them
again."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from bdbench.models.plugins.errors import require
from bdbench.models.plugins.files import load_file
from bdbench.models.plugins.registry import PLUGIN
from bdbench.storage.cache import sha256_of
from bdbench.trial.provenance import files_of, settle

Sources = Mapping[Path, Mapping[Path, str | None]]
"""By plugin file, the hashes of that file and of those that it imports, see `files_of`."""


def sources_of(plugins: Iterable[Path]) -> Sources:
    """The sources of plugin files that this process has loaded, as they are now."""
    loaded = {name: module for name, module in sys.modules.items() if name.startswith(PLUGIN)}
    places = {name: Path(str(module.__file__)).resolve() for name, module in loaded.items()}
    return {
        path: {
            file.absolute(): _hash(file)
            for name, place in places.items()
            if place == path.resolve()
            for file in files_of(name).values()
        }
        for path in plugins
    }


def load_unchanged(path: Path, sources: Sources) -> None:
    """Load a plugin file. From then on the provenance of its cells is that of the loaded code,
    whatever becomes of the files.

    Raises `InvalidInput` as `load_file` does, and if the plugin file or a file that it imports has
    other content than in `sources`.
    """
    _check(path, sources)
    load_file(path)
    # Provenance reads each file once: here, and not when the first images are loaded.
    settle()
    _check(path, sources)


def _check(path: Path, sources: Sources) -> None:
    for file, known in sources.get(path, {}).items():
        which = "" if file.name == path.name else f", which plugin {str(path)!r} imports,"
        require(
            _hash(file) == known,
            f"{file}{which} has changed during the run: run the same command again",
        )


def _hash(file: Path) -> str | None:
    """None for a file that cannot be read."""
    with suppress(OSError):
        return sha256_of(file)
    return None

"""The origin of a number: versions, device, hashes of sources and data."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

import torch

import bdbench.models
from bdbench.cells.cell import REGISTRIES, Cell
from bdbench.cells.declared import clean_needs
from bdbench.datasets.base import Dataset
from bdbench.machine.devices import instructions
from bdbench.machine.numerics import SETTINGS
from bdbench.machine.system import commit, device_name, versions
from bdbench.models.plugins.documentation import about_fields, about_module
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.plugins.files import plugin_files
from bdbench.models.plugins.installed import is_installed
from bdbench.models.plugins.registry import PLUGIN
from bdbench.records.record import Record

OURS = ("bdbench.attacks", "bdbench.defenses", "bdbench.datasets")
"""Packages whose files are part of the source of a plugin that imports them."""
Source = tuple[Path, str]
"""A file and the module that was imported from it; "" for all of `models/`."""
LONGEST = 20_000
"""Characters of a docstring that a record keeps."""


def of(cell: Cell, device: torch.device, dataset: Dataset | None) -> dict[str, Any]:
    """The provenance of a cell as JSON values.

    dataset: None for a cell whose data set was not loaded
    """
    return {
        "versions": versions(),
        "device": device_name(device),
        "precision": cell.recipe.precision,
        "tf32": device.type == "cuda" and SETTINGS["cudnn tf32"].value() is not False,
        "deterministic": torch.are_deterministic_algorithms_enabled() or device.type == "cpu",
        "threads": torch.get_num_threads(),
        "instructions": instructions() if device.type == "cpu" else None,
        "commit": commit(),
        "sources": sources(cell),
        "titles": {axis: info.title for axis, info in cell.info.items() if info.title},
        **({"code": {axis: code.text for axis, code in cell.local.items()}} if cell.local else {}),
        **({"plugins": files} if (files := plugins(cell)) else {}),
        "clean_fraction": _clean_fraction(cell),
        "data_sha256": dataset and dataset.sha256,
        "data_notes": list(dataset.notes) if dataset else [],
    }


def _clean_fraction(cell: Cell) -> float | None:
    """None for a defense that cannot say it, whose cell fails."""
    with suppress(InvalidInput):
        return clean_needs(cell.defense, cell.labels["defense"])[0]
    return None


def plugins(cell: Cell) -> list[str]:
    """The plugin files that a cell needs, relative to the current folder if they are below it."""
    return [_relative(file) for file in needed_plugin_files(cell)]


def needed_plugin_files(cell: Cell) -> list[Path]:
    """The loaded plugin files that define a plugin of a cell, or import the module that does,
    directly or not."""
    modules = {
        name
        for info in cell.info.values()
        for name in info.modules
        if name != "__main__" and not name.startswith("bdbench.")
    }
    defining = {_file(name) for name in modules}
    importing = {
        Path(str(module.__file__))
        for name, module in list(sys.modules.items())
        if name.startswith(PLUGIN) and defining.intersection(files_of(name).values())
    }
    return sorted(importing.union(plugin_files(modules)))


def _relative(file: Path) -> str:
    try:
        return str(file.relative_to(Path.cwd()))
    except (ValueError, OSError):  # it is elsewhere, or the working folder was removed
        return str(file)


def descriptions(cell: Cell) -> dict[str, dict[str, str]]:
    """By axis, the docstrings of a plugin and the name of its package or file. A report shows them
    where the plugin is not installed, too."""
    found = {}
    for axis, registry in REGISTRIES.items():
        factory = registry.factories(getattr(cell, axis))[0]
        if registry.is_local(factory):
            # The docstring of a notebook's module is not about the class.
            origin, about = "a script or notebook", ""
        else:
            origin, about = registry.origin(registry.name_of(factory)), about_module(factory)
        texts = {"about": about, "settings": about_fields(factory), "origin": Path(origin).name}
        found[axis] = {name: text[:LONGEST] for name, text in texts.items()}
    return found


def sources(cell: Cell) -> dict[str, str]:
    """Hashes, 12 hex digits each, of the source of each plugin of a cell and of training."""
    found = {"training": _hash(*_training())}
    for axis, info in cell.info.items():
        # A notebook may use anything that we offer.
        modules = (*info.modules, "bdbench") if info.code else info.modules
        found[axis] = _hash(*_together(modules), text=info.code.text if info.code else "")
    return found


def changed(record: Record, cell: Cell) -> tuple[str, ...]:
    """The parts of a cell whose code has changed since its record was made, sorted."""
    then, now = record.provenance.sources, sources(cell)
    return tuple(sorted(p for p in {*then, *now} if then.get(p) != now.get(p)))


def hash_of(module: str) -> str:
    """The hash of the source of a module and of what it imports, see `files_of`."""
    return _hash(*_together((module,)))


def settle() -> None:
    """Read the source of all that is built in and of plugin files, and the commit, so that they are
    those of the code that this process has imported, even if a file is edited later."""
    ours = [name for name in sys.modules if name.partition(".")[0] == "bdbench"]
    imported = [(file, name) for name in ours if _followed(name, "") and (file := _file(name))]
    for source in (*_training(), *imported):
        _content(*source)
    for name in [name for name in sys.modules if name.startswith(PLUGIN)]:
        files_of(name)
    commit()


@functools.cache
def _training() -> tuple[Source, ...]:
    """`models/`, but for the code that reads specs and registers plugins: it trains nothing, and a
    record has the settings that it read."""
    root = Path(bdbench.models.__path__[0])
    files = (file for file in root.rglob("*.py") if root / "plugins" not in file.parents)
    return tuple((file, "") for file in sorted(files))


@functools.cache
def _together(modules: tuple[str, ...]) -> tuple[Source, ...]:
    """The sources of several modules, see `files_of`."""
    found = {file: name for module in modules for name, file in files_of(module).items()}
    return tuple(sorted(found.items(), key=_place))


def _place(source: Source) -> tuple[bool, str]:
    """The order of sources in a hash: those of users by name, so that their files may lie anywhere,
    then ours."""
    file, module = source
    ours = module.partition(".")[0] == "bdbench"
    # The name of a plugin file's module ends in a hash of its path.
    name = module.rpartition("_")[0] if module.startswith(PLUGIN) else module
    return ours, str(file) if ours else name


@functools.cache
def files_of(module: str) -> Mapping[str, Path]:
    """The file of a plugin's module and all files that it imports, directly or not, by module:
    those of `OURS`, of the plugin's own package, and of modules that are not installed, such as a
    helper beside it. Training, harness and libraries are left out."""
    found: dict[str, Path] = {}
    left, own = [module], module.partition(".")[0]
    while left:
        name = left.pop()
        if name in found or not _followed(name, own):
            continue
        file = _file(name)
        if file is not None:
            found[name] = file
            left += _imports(name, file)
    return found


def _followed(name: str, own: str) -> bool:
    """Whether a module may belong to a plugin's source. It is not imported for that."""
    first = name.partition(".")[0]
    if first == "bdbench":
        return name == "bdbench" or name.startswith(OURS)
    return first == own or not _is_installed(first)


def _is_installed(package: str) -> bool:
    """Whether a package is part of Python, a library, or cannot be found."""
    if package in sys.stdlib_module_names:
        return True
    spec = _spec(package)
    # A folder without __init__.py has search locations and no origin.
    places = spec and (list(spec.submodule_search_locations or []) or [spec.origin or ""])
    return not places or any(is_installed(package, Path(place)) for place in places)


def _file(name: str) -> Path | None:
    """The Python file of a module; None without such a file or module."""
    spec = _spec(name)
    origin = spec and spec.origin
    return Path(origin) if origin and origin.endswith(".py") else None


def _spec(name: str) -> ModuleSpec | None:
    """Where a module is, None if nowhere. Unlike `importlib.util.find_spec`, this does not import
    the packages around it, whose code may do anything."""
    if (loaded := sys.modules.get(name)) is not None:
        return getattr(loaded, "__spec__", None)
    package, _, last = name.rpartition(".")
    with suppress(ImportError, ValueError):
        if not package:
            return importlib.util.find_spec(name)
        if (around := _spec(package)) is not None:
            path = getattr(sys.modules.get(package), "__path__", None)
            # By its last name: a folder without __init__.py asks for the package around it.
            return PathFinder.find_spec(last, [*(path or around.submodule_search_locations or ())])
    return None


def _imports(name: str, file: Path) -> Iterator[str]:
    """The modules that a file imports, and the packages around them; none if it does not parse.
    `from a import b` gives a and a.b, which may be a module."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in _nodes(_content(file, name)):
        named = []
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                dots = "." * node.level
                try:
                    base = importlib.util.resolve_name(f"{dots}{base}", package)
                except ImportError:  # it is outside any package, so this import fails
                    continue
            named = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for each in named:
            parts = each.split(".")
            # bdbench itself is left out: it holds everything, and no part of it needs all others.
            first = min(2 if parts[0] == "bdbench" else 1, len(parts))
            yield from (".".join(parts[:n]) for n in range(first, len(parts) + 1))


def _nodes(source: bytes) -> Iterator[ast.AST]:
    """The parts of a program; none if it does not parse."""
    with suppress(SyntaxError, ValueError, RecursionError), warnings.catch_warnings():
        # Such as one of an escape sequence, which may have been made an error.
        warnings.simplefilter("ignore")
        return ast.walk(ast.parse(source))
    return iter(())


@functools.cache
def _content(file: Path, module: str) -> bytes:
    """The source of a module, read once. A plugin file that was edited and loaded again is another
    module."""
    return file.read_bytes()


@functools.cache
def _hash(*sources: Source, text: str = "") -> str:
    digest = hashlib.sha256(text.encode())
    for source in sources:
        digest.update(_content(*source))
    return digest.hexdigest()[:12]

"""Where a number comes from: versions, device, sources and data."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import bdbench.models
from bdbench.cells.cell import REGISTRIES, Cell
from bdbench.datasets.base import Dataset
from bdbench.machine.system import commit, device_name, versions
from bdbench.models.plugins.documentation import about_fields, about_module
from bdbench.models.plugins.registry import plugin_files

OURS = ("bdbench.attacks", "bdbench.defenses", "bdbench.datasets")
"""The packages whose files belong to the source of a plugin that imports them."""
INSTALLED = {"site-packages", "dist-packages"}
LONGEST = 20_000
"""Characters that are kept of a docstring."""


def of(cell: Cell, device: torch.device, dataset: Dataset | None) -> dict[str, Any]:
    """All of it for one cell, as JSON values; without a data set where none was loaded."""
    return {
        "versions": versions(),
        "device": device_name(device),
        "precision": cell.recipe.precision,
        "tf32": device.type == "cuda" and torch.backends.cudnn.allow_tf32,
        "deterministic": torch.are_deterministic_algorithms_enabled() or device.type == "cpu",
        "threads": torch.get_num_threads(),
        "commit": commit(),
        "sources": sources(cell),
        "titles": {axis: words.title for axis, words in cell.words.items() if words.title},
        **({"code": {axis: code.text for axis, code in cell.local.items()}} if cell.local else {}),
        **({"plugins": files} if (files := plugins(cell)) else {}),
        "clean_fraction": cell.defense.clean_fraction,
        "data_sha256": dataset and dataset.sha256,
        "data_notes": list(dataset.notes) if dataset else [],
    }


def plugins(cell: Cell) -> list[str]:
    """The plugin files that a cell needs, relative to the current folder if they are below it."""
    modules = {name for words in cell.words.values() for name in words.modules}
    return [_relative(file) for file in plugin_files(modules - {"__main__"})]


def _relative(file: Path) -> str:
    try:
        return str(file.relative_to(Path.cwd()))
    except (ValueError, OSError):  # it is elsewhere, or the current folder is gone
        return str(file)


def descriptions(cell: Cell) -> dict[str, dict[str, str]]:
    """By axis, what the author of a plugin says of it, and where it comes from, of a file only its
    name: pages are made where it is not installed, too."""
    found = {}
    for axis, registry in REGISTRIES.items():
        factory = registry.factories(getattr(cell, axis))[0]
        if registry.is_local(factory):
            # What stands above a notebook is not about the class.
            origin, about = "a script or notebook", ""
        else:
            origin, about = registry.origin(registry.name_of(factory)), about_module(factory)
        texts = {"about": about, "settings": about_fields(factory), "origin": Path(origin).name}
        found[axis] = {name: text[:LONGEST] for name, text in texts.items()}
    return found


def sources(cell: Cell) -> dict[str, str]:
    """12 hex digits for each plugin of a cell, with the code it stands on, and for all training."""
    found = {"training": _hash(*_training())}
    for axis, words in cell.words.items():
        # A notebook may use anything that we offer.
        modules = (*words.modules, "bdbench") if words.code else words.modules
        found[axis] = _hash(*_together(modules), text=words.code.text if words.code else "")
    return found


@functools.cache
def _training() -> tuple[Path, ...]:
    return tuple(sorted(Path(bdbench.models.__path__[0]).rglob("*.py")))


@functools.cache
def _together(modules: tuple[str, ...]) -> tuple[Path, ...]:
    """The files of several modules."""
    return tuple(sorted({file for module in modules for file in files_of(module)}))


@functools.cache
def files_of(module: str) -> frozenset[Path]:
    """The file of a plugin's module and those that it imports, however far and in whatever way:
    our packages of plugins, the plugin's own package, and what is not installed, such as a helper
    beside it. Training and the harness are not among them, nor are libraries."""
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
    return frozenset(found.values())


def _followed(name: str, own: str) -> bool:
    """Whether a module may belong to a plugin's source. It is not imported to find out."""
    first = name.partition(".")[0]
    if first == "bdbench":
        return name == "bdbench" or name.startswith(OURS)
    return first == own or not _is_installed(first)


def _is_installed(package: str) -> bool:
    """Whether a package is Python's or a library; also for one that is nowhere."""
    if package in sys.stdlib_module_names:
        return True
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return True
    # A folder without __init__.py has places and no origin.
    places = spec and (list(spec.submodule_search_locations or []) or [spec.origin or ""])
    return not places or any(INSTALLED & {*Path(place).parts} for place in places)


def _file(name: str) -> Path | None:
    """The Python file of a module; None for what is no module, or has none."""
    loaded = sys.modules.get(name)
    try:
        spec = loaded.__spec__ if loaded is not None else importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None
    origin = spec and spec.origin
    return Path(origin) if origin and origin.endswith(".py") else None


def _imports(name: str, file: Path) -> Iterator[str]:
    """The modules that a file names in its imports, and the packages that hold them. Of
    `from a import b` that is a, and a.b, which may be a module too."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_bytes())):
        named = []
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                dots = "." * node.level
                base = importlib.util.resolve_name(f"{dots}{base}", package)
            named = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for each in named:
            parts = each.split(".")
            # Everything of ours is in bdbench, and no part of it stands on all others.
            first = min(2 if parts[0] == "bdbench" else 1, len(parts))
            yield from (".".join(parts[:n]) for n in range(first, len(parts) + 1))


@functools.cache
def _hash(*files: Path, text: str = "") -> str:
    digest = hashlib.sha256(text.encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]

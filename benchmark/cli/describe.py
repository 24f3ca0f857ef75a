"""What `list`, `describe`, `explain` and `doctor` print."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from bdbench.attacks.registry import attacks
from bdbench.cells.suites import SUITES
from bdbench.datasets.registry import datasets
from bdbench.defenses.registry import defenses
from bdbench.machine.devices import has_bf16
from bdbench.machine.system import commit, processor, versions
from bdbench.models.plugins import spec
from bdbench.models.plugins.errors import InvalidInput, check, visible
from bdbench.models.plugins.registry import Registry
from bdbench.models.registry import models
from bdbench.models.training.recipe import Recipe
from bdbench.records.files import read
from bdbench.records.record import Record
from bdbench.records.rerun import command
from bdbench.storage.atomic import check_writable
from bdbench.storage.folders import cache_root, roots

REGISTRIES: dict[str, Registry[Any]] = {
    "attacks": attacks,
    "defenses": defenses,
    "models": models,
    "datasets": datasets,
}


def catalogue(kinds: Sequence[str]) -> str:
    """A table of names with one line each, for every kind asked for."""
    parts = []
    for kind in kinds:
        if kind == "suites":
            rows = [(name, suite.description, "built in") for name, suite in SUITES.items()]
        else:
            registry = REGISTRIES[kind]
            rows = [
                (name, _first_line(registry.factory(name)), registry.origin(name))
                for name in registry.names()
            ]
        parts.append(_plain(rows, headers=[kind, "", "from"]))
    broken = [
        f"{registry.kind} {name} failed to import: {reason}"
        for registry in REGISTRIES.values()
        for name, reason in registry.broken.items()
    ]
    return "\n\n".join([*parts, *broken])


def description(name: str) -> str:
    """Everything of that name, whatever its kind. Raises `InvalidInput` if there is none."""
    known: list[str] = list(SUITES)
    parts = []
    for registry in REGISTRIES.values():
        known += registry.names()
        if name in registry.names():
            parts.append(_describe(registry, name))
    if name in SUITES:
        fields = vars(SUITES[name])
        rows = [
            (key, "all, or the defaults" if value in ({}, ()) else value)
            for key, value in fields.items()
        ]
        parts.append(f"suite {name}\n\n{_plain(rows)}")
    check(bool(parts), f"nothing is called {name!r}{spec.did_you_mean(name, dict.fromkeys(known))}")
    return "\n\n\n".join(parts)


def _describe(registry: Registry[Any], name: str) -> str:
    factory = registry.factory(name)
    module = inspect.getmodule(factory)
    rows = [
        (field.name, getattr(field.type, "__name__", str(field.type)), repr(field.default))
        for field in spec.fields_of(factory).values()
    ]
    parts = [
        f"{registry.kind} {name} (version {registry.version(name)}, {registry.origin(name)})",
        inspect.getdoc(module) or "",
        inspect.getdoc(factory) or "",
        _plain(rows, headers=["field", "type", "default"]) if rows else "",
    ]
    if registry is REGISTRIES["defenses"]:
        recipe, defense = Recipe(), defenses.build(name)
        cost = defense.cost(recipe) / (3 * recipe.epochs)
        parts.append(
            f"clean images it asks for: {100 * defense.clean_fraction:g} % of the training set\n"
            f"expected work: {cost:.2f} times plain training of {recipe.epochs} epochs"
        )
    if registry is REGISTRIES["models"]:
        count = sum(values.numel() for values in models.build(name).build(10, 32).parameters())
        parts.append(f"{count:,} parameters for 10 classes and 32 x 32 pixels")
    return "\n\n".join(part for part in parts if part)


def _first_line(factory: Any) -> str:
    """Of the module, which names method, authors and year; of a function where one has many."""
    doc = inspect.getdoc(factory) if inspect.isfunction(factory) else None
    text = doc or inspect.getdoc(inspect.getmodule(factory)) or ""
    return " ".join(text.split("\n\n")[0].split())


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
    parts.append(_plain(record.cell.items()))
    if record.metrics is not None:
        rows = [
            (name, f"{100 * count.rate:.2f} %", f"{count.hits:,} of {count.of:,}")
            for name, count in record.metrics.items()
            if count is not None
        ]
        parts.append(_plain(rows))
    if record.flags:
        parts.append(f"flags: {', '.join(record.flags)}")
    for title in ("passes", "diagnostics", "curves", "measured", "provenance"):
        content = getattr(record, title)
        if content:
            parts.append(f"{title}\n{json.dumps(content, indent=2, ensure_ascii=False)}")
    if record.error is not None:
        parts.append("\n".join(map(visible, record.error["traceback"].rstrip().splitlines())))
    parts.append(f"run it again with\n  {command(record)}")
    return "\n\n".join(parts)


def _plain(rows: Iterable[Sequence[Any]], headers: Sequence[str] = ()) -> str:
    """Aligned columns of text; numbers stay as they are written."""
    return tabulate(rows, headers=headers, tablefmt="plain", disable_numparse=True)


def diagnosis(data: Path | None) -> tuple[list[str], bool]:
    """Lines about this machine, and whether nothing stands in the way of a run."""
    fine = True
    rows = [*versions().items(), ("commit", commit() or "not a git checkout")]
    rows.append(("processor", processor()))
    rows.append(("threads", str(torch.get_num_threads())))
    rows.append(("bf16 on cpu", "in hardware" if has_bf16() else "not in hardware, fp32 is used"))
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [torch.cuda.get_device_name(index) for index in range(count)]
    rows.append(("gpus", ", ".join(gpus) or "none, the processor is used"))
    for label, folder in (("cache folder", cache_root()), ("results folder", Path("results"))):
        try:
            check_writable(folder)
            rows.append((label, f"{folder}, writable"))
        except InvalidInput as error:
            fine = False
            rows.append((label, f"{folder}, PROBLEM: {error}"))
    searched = roots(data)
    for name in datasets.names():
        rows.append((f"data {name}", datasets.build(name).locate(searched) or "not found"))
    rows.append(("data folders", ", ".join(map(str, searched))))
    for registry in REGISTRIES.values():
        registry.names()
        for name, reason in registry.broken.items():
            fine = False
            rows.append((f"{registry.kind} {name}", f"PROBLEM: failed to import: {reason}"))
    return _plain(rows).splitlines(), fine

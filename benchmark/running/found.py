"""Which work of cells is done already: it lies in the cache, or in checkpoints."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import torch

from bdbench.cells.cell import Cell
from bdbench.cells.cost import Part, own, parts
from bdbench.storage.cache import DAMAGE, Cache
from bdbench.storage.checkpoints import notes
from bdbench.storage.maintenance import contents
from bdbench.trial.keys import attack_key, fit_key, machine, undefended_key


def found(
    cells: Iterable[Cell], cache: Cache, device: torch.device, threads: int, curves: bool
) -> dict[Part, float]:
    """Forward passes, a backward pass as two, of the parts of which there is something.

    Data sets are taken to be what they were: to find out, all of them would have to be read.
    """
    entries, kept = _entries(cache), _kept(cache)
    here = machine(device, threads)
    there: dict[Part, float] = {}
    for cell in cells:
        costs = parts(cell)
        keys = {
            "attack": ("poisoned", "prepare", attack_key(cell)),
            own(cell)[-1]: ("", "fit", fit_key(cell, curves)),
        }
        for n in range(cell.defense.undefended):
            key = {**undefended_key(cell, n), **here}
            keys[f"undefended {n}"] = ("undefended", "undefended", key)
        for part, cost in costs.items():
            kind, stage, key = keys[part[-1]]
            whole = (kind, _text(key)) in entries
            begun = kept.get(_text({"stage": stage, **key, **here}), 0.0)
            if whole or begun:
                there[part] = cost if whole else min(cost, begun)
    return there


def _entries(cache: Cache) -> set[tuple[str, str]]:
    """The kinds of entries and what they depend on."""
    there = set()
    for kind in ("poisoned", "undefended"):
        for stored in contents(cache, kind):
            with suppress(*DAMAGE):
                there.add((kind, _text(stored.key())))
    return there


def _kept(cache: Cache) -> dict[str, float]:
    """Forward passes in the checkpoints of each piece of work. Branches count for themselves; what
    comes after them counts them, too."""
    reached: dict[str, dict[str, float]] = defaultdict(dict)
    for loop, note in notes(cache.root / "checkpoints"):
        with suppress(KeyError, TypeError):
            branch, done = loop.rpartition(".")[0], note["forwards"] + 2 * note["backwards"]
            at_it = reached[_text(note["about"])]
            at_it[branch] = max(done, at_it.get(branch, 0.0))
    return {
        text: max(by.get("", 0.0), sum(done for branch, done in by.items() if branch))
        for text, by in reached.items()
    }


def _text(key: Mapping[str, Any]) -> str:
    """But for the data."""
    return json.dumps({name: part for name, part in key.items() if name != "data"}, sort_keys=True)

"""Work of cells that earlier runs have done: in the cache, or in checkpoints."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch

from bdbench.cells.cell import Cell
from bdbench.cells.cost import Part, own, parts
from bdbench.storage.cache import DAMAGE, Cache
from bdbench.storage.checkpoints import notes
from bdbench.storage.maintenance import contents
from bdbench.trial.keys import attack_key, fit_key, machine, undefended_key, with_curve
from bdbench.trial.undefended import has_curve, is_timed


def cached_work(
    cells: Sequence[Cell],
    cache: Cache,
    device: torch.device,
    threads: int,
    curves: bool,
    controls: Iterable[Cell] = (),
    timed: bool = False,
) -> dict[Part, float]:
    """Forward passes that are done of each part of the cells; a backward pass counts two.

    curves: whether the cells need curves; an undefended network without one is trained again if
        its curve is that of a cell
    controls: cells that need none
    timed: see `Harness`

    Data sets are assumed to be unchanged, as hashing them would take reading them all.
    """
    entries, checkpointed = _entries(cache), _checkpointed(cache)
    here = machine(device, threads)
    if curves:
        undefended = (each for each in cells if not each.is_defended)
        shown = {("undefended", _text(undefended_key(each, 0, here))) for each in undefended}
        entries -= shown - _entries(cache, has_curve)
    if timed:
        alone = _entries(cache, is_timed)
        entries = {entry for entry in entries if entry[0] == "poisoned" or entry in alone}
    done: dict[Part, float] = {}
    for cell in (*cells, *controls):
        costs = parts(cell)
        keys = {
            "attack": ("poisoned", "prepare", attack_key(cell, here), False),
            own(cell)[-1]: ("", "fit", fit_key(cell, curves), False),
        }
        for n in range(cell.declared.undefended):
            key = undefended_key(cell, n, here)
            keys[f"undefended {n}"] = ("undefended", "undefended", key, curves and n == 0)
        for part, cost in costs.items():
            kind, stage, key, curve = keys[part[-1]]
            whole = (kind, _text(key)) in entries
            work = with_curve(key, curve)
            begun = checkpointed.get(_text({"stage": stage, **work, **here}), 0.0)
            if whole or begun:
                done[part] = cost if whole else min(cost, begun)
    return done


def _entries(
    cache: Cache, suits: Callable[[Mapping[str, Any]], bool] | None = None
) -> set[tuple[str, str]]:
    """Kind and key of each cache entry, or of those whose meta suits."""
    found = set()
    for kind in ("poisoned", "undefended"):
        for stored in contents(cache, kind):
            with suppress(*DAMAGE):
                if suits is None or suits(stored.meta()):
                    found.add((kind, _text(stored.key())))
    return found


def _checkpointed(cache: Cache) -> dict[str, float]:
    """Forward passes in the checkpoints of each piece of work: the sum over its parallel branches,
    or the count after they joined, which includes them."""
    reached: dict[str, dict[str, float]] = defaultdict(dict)
    for loop, note in notes(cache.root):
        with suppress(*DAMAGE):
            branch, done = loop.rpartition(".")[0], note["forwards"] + 2 * note["backwards"]
            branches = reached[_text(note["about"])]
            branches[branch] = max(done, branches.get(branch, 0.0))
    return {
        text: max(by.get("", 0.0), sum(done for branch, done in by.items() if branch))
        for text, by in reached.items()
    }


def _text(key: Mapping[str, Any]) -> str:
    """A key without its data set, as text."""
    return json.dumps({name: part for name, part in key.items() if name != "data"}, sort_keys=True)

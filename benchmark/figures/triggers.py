"""A test image with the trigger of each attack: clean, triggered, and the difference.

Nothing is trained here. A trained attack is shown if the cache has what a run trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import starmap
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from bdbench.attacks.compound import parts_of
from bdbench.cells.cell import Cell, cell_of_record
from bdbench.figures.distortion import distortion
from bdbench.figures.picture import ImageRows, Picture, image_grid, stacked, write_caption
from bdbench.figures.preview import amplified
from bdbench.models.plugins.errors import require
from bdbench.storage.cache import DAMAGE, Cache, CacheEntry, Payload
from bdbench.storage.folders import cache_root, roots
from bdbench.storage.maintenance import contents
from bdbench.tables.groups import is_none
from bdbench.tables.selection import Selection
from bdbench.trial.harness import Harness
from bdbench.trial.keys import anywhere

CAPTION = "First test image that each attack should turn. Differences are multiplied, around grey."


class Untrained(Exception):
    """An attack would have to be trained first."""


class ReadyMade(Cache):
    """A cache that builds no poisoned set, and has those of all machines and numbers of threads."""

    def fetch(self, kind: str, key: Mapping[str, Any], *how: Any, **options: Any) -> CacheEntry:
        """As `Cache.fetch`. Raises `Untrained` for a poisoned set that is missing."""
        if kind == "poisoned":
            key = next(
                (found for found in self._made(kind) if anywhere(found) == anywhere(key)), key
            )
        return super().fetch(kind, key, *how, **options)

    def make(self, kind: str, build: Callable[[], Payload]) -> Payload:
        """As `Cache.make`. Raises `Untrained` for a poisoned set."""
        if kind == "poisoned":
            raise Untrained
        return super().make(kind, build)

    def _made(self, kind: str) -> Iterator[dict[str, Any]]:
        """The key of each entry of a kind, last used first."""
        for stored in contents(self, kind):
            with suppress(*DAMAGE):
                yield stored.key()


def draw(selection: Selection) -> Picture:
    """For each attack the first test image that its trigger should turn; see `bdbench data preview`
    for more.

    Raises `InvalidInput` for records of several data sets, for a data set that is not found, and
    where all attacks are trained and the cache has none of them.
    """
    groups = [g for g in selection.groups if not is_none(g.names["attack"])]
    require(bool(groups), f"{selection.results} has no record of an attack")
    selection.settled(groups, ["dataset"])
    root = cache_root()
    harness = Harness(ReadyMade(root), roots(selection.data), torch.device("cpu"))
    dataset = harness.dataset(cell_of_record(groups[0].records[0]).dataset)
    pairs: dict[str, tuple[int, Tensor, Tensor]] = {}
    absent = []
    for name in dict.fromkeys(group.names["attack"] for group in groups):
        records = [r for g in groups if g.names["attack"] == name for r in g.records]
        cells = [cell_of_record(record) for record in records]
        attack, test = cells[0].attack, dataset.test
        for part, each in (parts_of(attack) or {"": attack}).items():
            victims = each.goal(test.labels, test.num_classes) != test.labels
            row = int(victims.int().argmax())
            before = test.images[row : row + 1]
            after = (
                _ready_made(harness, cells, row, part)
                if each.trains
                else each.trigger(before.clone())
            )
            shown = f"{part} of {name}" if part else name
            if after is None:
                absent.append(shown)
            else:
                pairs[shown] = row, before, after
    reason = f"the cache, {root}, lacks trained attacks: {', '.join(absent)}; run a cell of each"
    require(bool(pairs), reason)
    rows = [
        {"attack": name, "image": row, "class": dataset.class_names[dataset.test.labels[row]]}
        | vars(distortion(before, after))
        | {"amplified": amplified(before, after)[1]}
        for name, (row, before, after) in pairs.items()
    ]
    figure = _gallery({name: pair[1:] for name, pair in pairs.items()})
    write_caption(figure, f"{groups[0].names['dataset']}. {CAPTION}")
    data = pd.DataFrame(rows).drop(columns="unchanged")
    return Picture(figure, data, (f"left out: {reason}",) * bool(absent))


def _ready_made(harness: Harness, cells: Sequence[Cell], row: int, part: str) -> Tensor | None:
    """A test image with the trigger that one of these cells trained, or that of a part; None if the
    cache has none."""
    for cell in cells:
        with suppress(Untrained):
            data = harness.poisoned(cell)
            return (data.parts[part] if part else data).triggered[row : row + 1]
    return None


def _gallery(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Figure:
    """A column for each attack: clean, triggered, and the difference with its factor below."""
    before, after = (torch.cat(images) for images in zip(*pairs.values(), strict=True))
    differences, factors = zip(*starmap(amplified, pairs.values()), strict=True)
    rows = {"clean": before, "triggered": after, "difference": torch.cat(differences)}
    notes = [f"\N{MULTIPLICATION SIGN} {factor:g}" for factor in factors]
    arrays = {label: images.numpy() for label, images in rows.items()}
    return image_grid([ImageRows(arrays, list(pairs), notes)], stacked)

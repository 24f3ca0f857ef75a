"""A test image with the trigger of each attack: clean, triggered, and the difference.

Nothing is trained here. Of an attack that must be, the cache may have what a run has made of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from bdbench.cells.cell import Cell, cell_of_record
from bdbench.figures.distortion import distortion
from bdbench.figures.picture import COLUMN, PAGE, Picture, stacked, write_caption
from bdbench.figures.preview import amplified
from bdbench.figures.selection import Selection
from bdbench.models.plugins.errors import require
from bdbench.storage.cache import Cache, Payload
from bdbench.storage.folders import cache_root, roots
from bdbench.tables.groups import is_none
from bdbench.trial.harness import Harness

ABREAST = 8
"""Attacks beside each other."""
CAPTION = (
    "Of each attack the first test image that it is to turn. Differences around grey, multiplied."
)
ROWS = ("clean", "triggered", "difference")


class Untrained(Exception):
    """An attack would have to be trained first."""


class ReadyMade(Cache):
    """The cache, but no poisoned set is made for it."""

    def make(self, kind: str, build: Callable[[], Payload]) -> Payload:
        """As `Cache.make`. Raises `Untrained` where a poisoned set would have to be made."""
        if kind == "poisoned":
            raise Untrained
        return super().make(kind, build)


def draw(selection: Selection) -> Picture:
    """Of each attack the first test image that it is to turn; see `bdbench data preview` for more.

    Raises `InvalidInput` for records of several data sets, for one that is nowhere, and where the
    cache has none of the attacks that must be trained, and there is no other.
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
        attack = cells[0].attack
        victims = attack.goal(dataset.test.labels, dataset.test.num_classes) != dataset.test.labels
        row = int(victims.int().argmax())
        before = dataset.test.images[row : row + 1]
        after = (
            _ready_made(harness, cells, row) if attack.trains else attack.trigger(before.clone())
        )
        if after is None:
            absent.append(name)
        else:
            pairs[name] = row, before, after
    reason = f"not in the cache, {root}, and trained in a run only: {', '.join(absent)}"
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


def _ready_made(harness: Harness, cells: Sequence[Cell], row: int) -> Tensor | None:
    """A test image with the trigger that any of these runs has trained."""
    for cell in cells:
        with suppress(Untrained):
            return harness.poisoned(cell).triggered[row : row + 1]
    return None


def _gallery(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Figure:
    """A column for each attack, `ROWS` below each other."""
    bands = -(-len(pairs) // ABREAST)
    abreast = -(-len(pairs) // bands)
    width = COLUMN if abreast <= ABREAST // 2 else PAGE
    side = min(1.0, 0.95 * width / abreast)
    figure = Figure((width, bands * (3 * side + 0.55) + 0.25), layout="compressed")
    grid = figure.add_gridspec(bands * len(ROWS), abreast)
    for number, (name, (before, after)) in enumerate(pairs.items()):
        band, place = divmod(number, abreast)
        difference, factor = amplified(before, after)
        for line, image in enumerate((before, after, difference)):
            axes = figure.add_subplot(grid[band * len(ROWS) + line, place])
            axes.imshow(image[0].permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if place == 0:
                axes.set_ylabel(ROWS[line])
            if line == 0:
                axes.set_title(stacked(name, int(side * 18)), fontsize=6.5)
        axes.set_xlabel(f"\N{MULTIPLICATION SIGN} {factor:g}", fontsize=6.5)
    return figure

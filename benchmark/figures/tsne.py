"""Embeddings of training images, projected by t-SNE (van der Maaten and Hinton, 2008).

For CBD, the four panels of its paper's figure 3: r and z together before and after training, then
each after training by label. For a defense with one embedding, before and after training, by label.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from bdbench.figures.picture import COLOURS, COLUMN, PAGE, Picture, caption, legend
from bdbench.models.plugins.errors import require
from bdbench.records.consistency import AXES
from bdbench.records.record import Record
from bdbench.storage.cache import DAMAGE, Arrays, Cache
from bdbench.storage.folders import cache_root
from bdbench.storage.keys import digest_of
from bdbench.tables.groups import Group
from bdbench.tables.selection import Selection

POINTS = 2_000
"""Largest number of points in a panel."""
FEWEST = 10
"""Smallest number of points that t-SNE can arrange."""
DOT: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 1.8, "markeredgewidth": 0}
TRIANGLE: dict[str, Any] = {"linestyle": "", "marker": "^", "markersize": 4}
EDGE = {"markeredgecolor": "#000000", "markeredgewidth": 0.5}
# The first two are dark and light, so that they differ in greyscale print.
EMBEDDING_COLOURS = (COLOURS[0], COLOURS[4], *COLOURS[5:])


def draw(selection: Selection) -> Picture:
    """Draw one attack and defense, with the lowest seed whose embeddings are in the cache."""
    group, arrays = _found(selection)
    panels = list(_panels(arrays))
    size = (PAGE, 2.5) if len(panels) > 2 else (COLUMN, 2.4)
    figure = Figure(size, layout="constrained")
    tables = []
    for number, (title, names, when) in enumerate(panels):
        table = _points(arrays, names, when)
        axes = figure.add_subplot(1, len(panels), number + 1, title=f"({'abcd'[number]}) {title}")
        axes.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
        axes.spines[:].set_visible(True)
        _scatter(axes, table, names)
        if len(names) == 1 and when == "after":
            _write_labels(axes, table[~table["poisoned"]])
        table.insert(0, "panel", "abcd"[number])
        tables.append(table)
    data = pd.concat(tables, ignore_index=True)
    names = panels[0][1]
    colored = zip(names if len(names) > 1 else (), EMBEDDING_COLOURS, strict=False)
    styles = {name: {**DOT, "color": color, "markersize": 4} for name, color in colored}
    styles |= {"poisoned image": {**TRIANGLE, **EDGE, "color": "#ffffff"}}
    legend(figure, styles)
    cell = f"{group.names['defense']} on {group.names['attack']}"
    sentences = _sentences(data["panel"].value_counts(), len(names))
    caption(figure, [group], [len(group.used)], cell, *sentences)
    return Picture(figure, data)


def _sentences(points: pd.Series[int], embeddings: int) -> Iterator[str]:
    shown, first = int(points.iloc[-1]), int(points["a"]) // embeddings
    yield f"{shown:,} training images" + f", {first:,} of them in (a)" * (first < shown)
    by_label = "In (c) and (d), colours" if embeddings > 1 else "Colours"
    yield f"{by_label} and numbers are true labels"


def _found(selection: Selection) -> tuple[Group, Arrays]:
    """A group of one record, and its cached embeddings."""
    cache = Cache(cache_root())
    found = []
    for group in selection.groups:
        loaded = ((record, cache.get("embeddings", {"cell": record.key})) for record in group.used)
        usable = (
            (record, arrays)
            for record, arrays in loaded
            if arrays and "rows" in arrays and _are_of(cache, record)
        )
        found += [(Group((record,), group.names), arrays) for record, arrays in islice(usable, 1)]
    if not found:
        raise selection.missing(f"no embeddings of {selection.results} in the cache, {cache.root}")
    selection.settled([group for group, _ in found], AXES)
    return found[0]


def _are_of(cache: Cache, record: Record) -> bool:
    """Whether cached embeddings are of the network of a record, and not of another run of its cell;
    True where one of the two does not say it."""
    here, there = record.provenance.network_sha256, None
    with suppress(*DAMAGE):
        there = cache.meta_of("embeddings", digest_of({"cell": record.key})).get("network_sha256")
    return None in (here, there) or here == there


def _panels(arrays: Arrays) -> Iterator[tuple[str, list[str], str]]:
    """(title, names of the embeddings, "before" or "after" training) of each panel."""
    names = sorted({name.split("/")[1] for name in arrays if name.startswith("embedding/")})
    yield "before training", names, "before"
    yield "after training", names, "after"
    if len(names) > 1:
        yield from ((name, [name], "after") for name in names)


def _points(arrays: Arrays, names: Sequence[str], when: str) -> pd.DataFrame:
    """One row per image and embedding: the labels, and the position that t-SNE gives it.

    Embeddings are not scaled: scaling each alone would draw r and z closer together than they are,
    and a common scale makes no difference to t-SNE.
    """
    count = len(arrays["rows"])
    chosen = np.linspace(0, count - 1, min(count, POINTS // len(names))).round().astype(int)
    columns = {"image": "rows", "label": "labels", "true_label": "true_labels"}
    about = {column: arrays[name][chosen] for column, name in columns.items()}
    about["poisoned"] = arrays["poisoned"][chosen]
    table = pd.concat([pd.DataFrame({"embedding": name, **about}) for name in names])
    values = np.concatenate([arrays[f"embedding/{name}/{when}"][chosen] for name in names])
    what = f"embeddings {' and '.join(names)} {when} training"
    require(len(values) >= FEWEST, f"{what} are of {len(values)} images, too few to draw")
    require(bool(np.isfinite(values).all()), f"{what} are not finite")
    require(bool(np.ptp(values, axis=0).any()), f"{what} are the same for all images")
    method = TSNE(perplexity=min(30, len(values) / 4), init="pca", random_state=0)
    # The order of summation depends on the number of threads.
    with threadpool_limits(1):
        table[["x", "y"]] = method.fit_transform(values)
    return table


def _scatter(axes: Axes, table: pd.DataFrame, names: Sequence[str]) -> None:
    """Draw several embeddings in one colour each, or a single one in colours by true label."""
    by = "embedding" if len(names) > 1 else "true_label"
    poisoned = table["poisoned"].to_numpy(dtype=bool)
    for rows, style in ((table[~poisoned], DOT), (table[poisoned], {**TRIANGLE, **EDGE})):
        for value, part in rows.groupby(by):
            color = EMBEDDING_COLOURS[names.index(value)] if len(names) > 1 else _color(value)
            axes.plot(part["x"], part["y"], **{**style, "color": color})


def _write_labels(axes: Axes, clean: pd.DataFrame) -> None:
    """Write each label among its images, for readers who cannot distinguish the colours."""
    halo = patheffects.withStroke(linewidth=1.5, foreground="#ffffff")
    middle: dict[str, Any] = {"ha": "center", "va": "center", "path_effects": [halo]}
    for label, place in clean.groupby("true_label")[["x", "y"]].median().iterrows():
        axes.text(place["x"], place["y"], str(label), fontsize=6.5, **middle)


def _color(label: Any) -> str:
    return COLOURS[1 + int(label) % (len(COLOURS) - 1)]

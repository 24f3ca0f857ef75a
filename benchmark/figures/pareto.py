"""The cost and benefit of defenses: time, ASR and loss of CA, relative to no defense."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    Locator,
    LogLocator,
    MaxNLocator,
    NullLocator,
    StrMethodFormatter,
)

from bdbench.figures.labels import (
    Label,
    Panel,
    column_height,
    column_width,
    columns,
    labelled,
    relative_width,
)
from bdbench.figures.picture import PAGE, Picture, asr_axis, caption, left_out, mark, several
from bdbench.models.plugins.errors import InvalidInput, require
from bdbench.tables.block import LeaderboardBlock
from bdbench.tables.groups import ASR, CA, Group, is_none, mean, seconds_total, unlike
from bdbench.tables.names import names
from bdbench.tables.selection import Selection
from bdbench.tables.statistics import half_width

TIME, LOST = "seconds_ratio", "clean_accuracy_lost"
VALUES = (TIME, ASR, LOST)
MEAN = "mean"
UNPAIRED = "nothing run alike to compare with"


def draw(selection: Selection) -> Picture:
    """Large markers are means over the attacks that defenses share; small ones are attacks. The
    leaderboard has the same cells in its ratio, and those without an attack."""
    block = LeaderboardBlock(tuple(selection.settled(selection.with_baseline)))
    if not any(map(is_none, block.defenses)):
        raise InvalidInput(
            f"{selection.results} has no records with no defense to compare with; create them with "
            f"{selection.command('--defense', 'none')}"
        )
    require(bool(block.poisoned), f"{selection.results} has no records with an attack")
    data = points(block)
    if all(map(is_none, data.get("defense", ()))):
        raise _nothing_to_compare(selection, block)
    titles = names(block.groups, "defense")
    width = column_width(titles.values())

    def build(column: float) -> tuple[Figure, Sequence[Panel]]:
        return _figure(data, titles, selection.ranks, column, block)

    return Picture(labelled(build, relative_width(width, PAGE / 2)), data)


def _nothing_to_compare(selection: Selection, block: LeaderboardBlock) -> InvalidInput:
    """The error for a folder without a point of any defense."""
    both = f"{selection.results} has no attack with results both with and without a defense"
    used = [group for group in block.groups if group.used and not is_none(group.names["attack"])]
    bases = {group.names["attack"] for group in used if is_none(group.names["defense"])}
    cells = [group for group in used if group.names["attack"] in bases]
    if all(is_none(group.names["defense"]) for group in cells):
        return InvalidInput(both)
    again = selection.command(of=cells, into=selection.results / "again")
    return InvalidInput(f"{both} that ran alike, so times do not compare; run them alike: {again}")


def _figure(
    data: pd.DataFrame,
    titles: Mapping[str, str],
    ranks: Mapping[str, int],
    width: float,
    block: LeaderboardBlock,
) -> tuple[Figure, list[Panel]]:
    height = max(2.8, column_height(titles.values()) + 0.9) if width else 2.8
    figure = Figure((PAGE, height), layout="constrained")
    panels = []
    for (axes, column), value in zip(columns(figure, 1, 2, width), (ASR, LOST), strict=True):
        _draw_panel(axes, data, value, ranks)
        labels = _labels(data, value, titles, ranks)
        small = data[data["attack"] != MEAN]
        others = [(x, 100 * y) for x, y in zip(small[TIME], small[value], strict=True)]
        panels.append(Panel(axes, labels, others, column))
    asr_axis(panels[0].axes)
    panels[1].axes.set_ylabel("loss of CA (points)")
    # A point without a common seed stands on all seeds of both sides; the sentences name it.
    paired = data.loc[data["seeds"] > 0, "seeds"]
    sentences = _sentences(data, block, titles)
    caption(figure, block.groups, paired, *sentences, *left_out(UNPAIRED, _unpaired(block)))
    return figure, panels


def _labels(
    data: pd.DataFrame, value: str, titles: Mapping[str, str], ranks: Mapping[str, int]
) -> list[Label]:
    """Labels at the means over the attacks; of a defense without one, at its first attack."""
    last = data["attack"] == MEAN
    named = data.assign(last=last).sort_values("last", kind="stable", ascending=False)
    named = named.drop_duplicates("defense").sort_index()
    return [
        Label(titles[defense], x, 100 * y, mark(ranks[defense])["color"])
        for defense, x, y in zip(named["defense"], named[TIME], named[value], strict=True)
    ]


def points(block: LeaderboardBlock) -> pd.DataFrame:
    """One row per defense and attack, and one per defense with the mean over the attacks of
    `_shared`; a defense without one of these has no mean.

    seconds_ratio: training time, including the undefended network, relative to no defense; averaged
        as logarithms, so that its interval never reaches 0
    attack_success_rate, clean_accuracy_lost: shares
    _low, _high: 95 % t interval
    seeds: number of seeds that a defense and no defense share, for a mean on every attack; values
        and intervals are paired over them. Without one, values use all seeds and have no interval
    front_*: for means, whether no other defense is at least as good in time and in this value, and
        better in one of them. A defense whose accuracy is at chance is in none.
    """
    data = pd.DataFrame(_rows(block))
    if data.empty:
        return data
    means = data[data["attack"] == MEAN]
    able = means[~means["defense"].isin(_at_chance(block))]
    for value in (ASR, LOST):
        found = pd.Series(front(list(able[TIME]), list(able[value])), able.index, dtype=object)
        data[f"front_{value}"] = found.reindex(means.index, fill_value=False)
    return data


def front(x: Sequence[float], y: Sequence[float]) -> list[bool]:
    """Whether each point is Pareto optimal: no other is at most as large and less in one value."""
    pairs = list(zip(x, y, strict=True))
    return [not any(p <= a and q <= b and (p, q) != (a, b) for p, q in pairs) for a, b in pairs]


def _rows(block: LeaderboardBlock) -> Iterator[dict[str, Any]]:
    results = _results(block)
    undefended = results[results["defense"].map(is_none).astype(bool)].drop(columns="defense")
    shared = _shared(results)
    for defense in block.defenses:
        own = results[results["defense"] == defense].drop(columns="defense")
        pairs = own.merge(undefended, on=["attack", "seed"], suffixes=("", "_none"))
        sides = (side.drop(columns="seed").groupby("attack").mean() for side in (own, undefended))
        cells = next(sides).merge(next(sides), on="attack", suffixes=("", "_none"))
        attacks = list(cells.index)
        for name, chosen in [*((attack, [attack]) for attack in attacks), (MEAN, shared)]:
            if chosen and {*chosen} <= {*attacks}:
                seeds = [
                    _compare(pair)
                    for _, pair in pairs[pairs["attack"].isin(chosen)].groupby("seed")
                    if len(pair) == len(chosen)
                ]
                row: dict[str, Any] = {"defense": defense, "attack": name, "attacks": len(chosen)}
                yield {
                    **row,
                    "seeds": len(seeds),
                    **_estimates(seeds or [_compare(cells.loc[chosen])]),
                }


def _shared(results: pd.DataFrame) -> list[str]:
    """The attacks of all means, each with results of no defense: of those that two defenses share,
    the set with the most results of defenses that have all of it; of a single defense, its own."""
    bare = results["defense"].map(is_none).astype(bool)
    every = list(dict.fromkeys(results.loc[bare, "attack"]))
    defended = results[~bare & results["attack"].isin(every)]
    own = [frozenset(attacks) for _, attacks in defended.groupby("defense")["attack"]]
    pairs = {one & other for one, other in combinations(own, 2)} - {frozenset()}

    def worth(attacks: frozenset[str]) -> tuple[int, int, list[int]]:
        holders = sum(attacks <= each for each in own)
        return holders * len(attacks), len(attacks), [-every.index(a) for a in sorted(attacks)]

    best = max(pairs or own, key=worth, default=frozenset[str]())
    return [attack for attack in every if attack in best]


def _at_chance(block: LeaderboardBlock) -> list[str]:
    """The defenses that are not ranked."""
    bad = (g.names["defense"] for g in block.groups if g.counts(ASR) and not g.is_ranked)
    return list(dict.fromkeys(bad))


def _results(block: LeaderboardBlock) -> pd.DataFrame:
    """One row per record that enters a mean and was run like no defense with its seed: defense,
    attack, seed, seconds and shares."""
    rows = []
    for group in block.groups:
        base = block.cells.get((block.undefended, group.names["attack"]))
        there = base.by_seed if base else {}
        for record in group.used if group.names["attack"] in block.poisoned else ():
            seed = record.cell.seed
            bases = [there[seed]] if seed in there else list(there.values())
            if any(unlike(record, each) for each in bases):
                continue
            shares = {name: record.count(name) for name in (ASR, CA)}
            row: dict[str, Any] = {axis: group.names[axis] for axis in ("defense", "attack")}
            row |= {"seed": seed, "seconds": seconds_total(record)}
            rows.append(row | {name: count and count.rate for name, count in shares.items()})
    found = pd.DataFrame(rows, columns=["defense", "attack", "seed", "seconds", ASR, CA]).dropna()
    # The time axis is logarithmic.
    return found[found["seconds"] > 0]


def _unpaired(block: LeaderboardBlock) -> Iterator[tuple[Group, int]]:
    """The groups, and how many of their used records are in no point."""
    results = _results(block)
    found = {place: {*seeds} for place, seeds in results.groupby(["defense", "attack"])["seed"]}
    for group in block.groups:
        attack = group.names["attack"]
        own = found.get((group.names["defense"], attack), set())
        base = found.get((block.undefended, attack), set())
        drawn = len(own & base) or (len(own) if base else 0)
        yield group, 0 if is_none(attack) else len(group.used) - drawn


def _compare(pairs: pd.DataFrame) -> dict[str, float]:
    """The three values over pairs of a defense and no defense."""
    return {
        TIME: pairs["seconds"].sum() / pairs["seconds_none"].sum(),
        ASR: pairs[ASR].mean(),
        LOST: (pairs[f"{CA}_none"] - pairs[CA]).mean(),
    }


def _estimates(seeds: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each value over seeds, and the ends of its interval."""
    logarithms = [math.log(seed[TIME]) for seed in seeds]
    centre = {value: mean(seed[value] for seed in seeds) for value in (ASR, LOST)}
    centre[TIME] = math.exp(mean(logarithms))
    factor = math.exp(half_width(logarithms))
    asr, lost = (half_width([seed[value] for seed in seeds]) for value in (ASR, LOST))
    ends: dict[str, Iterable[float]] = {
        TIME: (centre[TIME] / factor, centre[TIME] * factor),
        ASR: np.clip([centre[ASR] - asr, centre[ASR] + asr], 0, 1).tolist(),
        LOST: (centre[LOST] - lost, centre[LOST] + lost),
    }
    found: dict[str, float] = {}
    for value, (low, high) in ends.items():
        found |= {value: centre[value], f"{value}_low": low, f"{value}_high": high}
    return found


def _draw_panel(axes: Axes, data: pd.DataFrame, value: str, ranks: Mapping[str, int]) -> None:
    """Draw one value in percent against time, with the Pareto front as steps."""
    means = data[data["attack"] == MEAN]
    for _, row in data.iterrows():
        style, is_mean = mark(ranks[row["defense"]]), row["attack"] == MEAN
        size = {"zorder": 4} if is_mean else {"markersize": 2.5, "alpha": 0.6}
        x, y = [row[TIME]], [100 * row[value]]
        axes.plot(x, y, **style | size)
        if is_mean and row["seeds"] > 1:
            ends = [[row[f"{name}_{end}"] for end in ("low", "high")] for name in (TIME, value)]
            axes.plot(ends[0], y * 2, color=style["color"], linewidth=0.9, zorder=3)
            axes.plot(x * 2, 100 * np.array(ends[1]), color=style["color"], linewidth=0.9, zorder=3)
    axes.set_xscale("log")
    # The bars are those of means over several seeds.
    barred = means[means["seeds"] > 1]
    low, high = (pd.concat([data[TIME], barred[f"{TIME}_{end}"]]) for end in ("low", "high"))
    axes.set_xlim(low.min() / 1.15, high.max() * 1.15)
    steps = means[means[f"front_{value}"].astype(bool)].sort_values(TIME)
    if len(steps):
        xs, ys = [*steps[TIME], 10 * high.max()], 100 * steps[value]
        style = {"color": "#999999", "drawstyle": "steps-post", "linewidth": 1}
        axes.plot(xs, [*ys, ys.iloc[-1]], "--", **style)
    axes.xaxis.set_major_locator(_ticks(*axes.get_xlim()))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("training time (no defense = 1)")


def _ticks(low: float, high: float) -> Locator:
    """The ticks of the time axis: powers of two and one between, if three are in its range."""
    powers = LogLocator(base=2, subs=(1, 1.5))
    inside = [tick for tick in powers.tick_values(low, high) if low <= tick <= high]
    return powers if len(inside) >= 3 else MaxNLocator(5)


def _sentences(
    data: pd.DataFrame, block: LeaderboardBlock, titles: Mapping[str, str]
) -> Iterator[str]:
    means = data[data["attack"] == MEAN]
    shared = _shared(_results(block))
    which = several(len(shared), "attack")
    if len(shared) < len(block.poisoned):
        shown = names(block.groups, "attack")
        which += f", {', '.join(shown[attack] for attack in shared)}"
    yield f"Large markers: mean over {which}; small: each attack"
    yield "Dashed: Pareto front"
    if (means["seeds"] > 1).any():
        yield "Bars: 95 % t interval over seeds"
    if unpaired := list(dict.fromkeys(data.loc[data["seeds"] == 0, "defense"])):
        yield f"Over all seeds, without a common one: {', '.join(unpaired)}"
    if bare := [d for d in dict.fromkeys(data["defense"]) if d not in {*means["defense"]}]:
        yield f"Without all of these, so without a mean: {', '.join(titles[d] for d in bare)}"
    if lost := _at_chance(block):
        yield f"Not in the front, as accuracy is at chance: {', '.join(titles[d] for d in lost)}"

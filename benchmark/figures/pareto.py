"""What a defense costs and what it brings: time, ASR and lost CA, all against no defense."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from bdbench.figures.labels import Name, Panel, columns, height_of, labelled, share_of, width_of
from bdbench.figures.picture import PAGE, Picture, asr_axis, caption, mark, several
from bdbench.figures.selection import Selection
from bdbench.models.plugins.errors import InvalidInput, require
from bdbench.tables.groups import ASR, CA, is_none, mean, seconds_total
from bdbench.tables.leaderboard import LeaderboardBlock
from bdbench.tables.names import names
from bdbench.tables.statistics import half_width

TIME, LOST = "seconds_ratio", "clean_accuracy_lost"
VALUES = (TIME, ASR, LOST)
MEAN = "mean"


def draw(selection: Selection) -> Picture:
    """Large marks are means over attacks, as in the leaderboard; small ones are the attacks."""
    block = LeaderboardBlock(tuple(selection.settled(selection.with_baseline)))
    if not any(map(is_none, block.defenses)):
        raise InvalidInput(
            f"{selection.results} has no record of no defense, which others are compared with; "
            f"{selection.command('--defense', 'none')} makes them"
        )
    require(bool(block.poisoned), f"{selection.results} has no record of an attack to compare by")
    data = points(block)
    require(
        any(not is_none(name) for name in data.get("defense", ())),
        f"{selection.results} has no attack with results of a defense and of no defense",
    )
    called = names(block.groups, "defense")
    width = width_of(called.values())

    def build(column: float) -> tuple[Figure, Sequence[Panel]]:
        return _figure(data, called, selection.ranks, column, block)

    return Picture(labelled(build, share_of(width, PAGE / 2)), data)


def _figure(
    data: pd.DataFrame,
    called: Mapping[str, str],
    ranks: Mapping[str, int],
    width: float,
    block: LeaderboardBlock,
) -> tuple[Figure, list[Panel]]:
    tall = max(2.8, height_of(called.values()) + 0.9) if width else 2.8
    figure = Figure((PAGE, tall), layout="constrained")
    panels = []
    for (axes, column), value in zip(columns(figure, 1, 2, width), (ASR, LOST), strict=True):
        _draw_panel(axes, data, value, ranks)
        points = _names(data, value, called, ranks)
        small = data[data["attack"] != MEAN]
        others = [(x, 100 * y) for x, y in zip(small[TIME], small[value], strict=True)]
        panels.append(Panel(axes, points, others, column))
    asr_axis(panels[0].axes)
    panels[1].axes.set_ylabel("CA lost (points)")
    caption(figure, block.groups, *_sentences(data, len(block.poisoned)))
    return figure, panels


def _names(
    data: pd.DataFrame, value: str, called: Mapping[str, str], ranks: Mapping[str, int]
) -> list[Name]:
    """At the means over attacks."""
    means = data[data["attack"] == MEAN]
    return [
        Name(called[defense], x, 100 * y, mark(ranks[defense])["color"])
        for defense, x, y in zip(means["defense"], means[TIME], means[value], strict=True)
    ]


def points(block: LeaderboardBlock) -> pd.DataFrame:
    """One row for each defense and attack, and one for each defense with the mean over attacks.

    seconds_ratio: of the training of a defense, undefended network included, to no defense
    attack_success_rate, clean_accuracy_lost: shares
    _low, _high: 95 % t interval
    seeds: those that a defense and no defense have in common, for a mean with each attack; values
        and intervals are of these, paired. Where there is none, values are of all seeds of either,
        without interval. Ratios are averaged as logarithms, so their interval never reaches 0
    front_*: on rows of means, whether no other defense is as good in time and in that value, and
        better in one
    """
    data = pd.DataFrame(_rows(block))
    if data.empty:
        return data
    means = data[data["attack"] == MEAN]
    for value in (ASR, LOST):
        found = front(list(means[TIME]), list(means[value]))
        data[f"front_{value}"] = pd.Series(found, means.index, dtype=object)
    return data


def front(x: Sequence[float], y: Sequence[float]) -> list[bool]:
    """Whether no other point is at most as large in both and less in one."""
    pairs = list(zip(x, y, strict=True))
    return [not any(p <= a and q <= b and (p, q) != (a, b) for p, q in pairs) for a, b in pairs]


def _rows(block: LeaderboardBlock) -> Iterator[dict[str, Any]]:
    results = _results(block)
    bare = results[results["defense"].map(is_none).astype(bool)].drop(columns="defense")
    for defense in block.defenses:
        own = results[results["defense"] == defense].drop(columns="defense")
        pairs = own.merge(bare, on=["attack", "seed"], suffixes=("", "_bare"))
        sides = (side.drop(columns="seed").groupby("attack").mean() for side in (own, bare))
        cells = next(sides).merge(next(sides), on="attack", suffixes=("", "_bare"))
        attacks = list(cells.index)
        for name, chosen in [*((attack, [attack]) for attack in attacks), (MEAN, attacks)]:
            if chosen:
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


def _results(block: LeaderboardBlock) -> pd.DataFrame:
    """One row for each record that enters a mean: defense, attack, seed, seconds and shares."""
    rows = []
    for group in block.groups:
        for record in group.used if group.names["attack"] in block.poisoned else ():
            shares = {name: (record.metrics or {}).get(name) for name in (ASR, CA)}
            row: dict[str, Any] = {axis: group.names[axis] for axis in ("defense", "attack")}
            row |= {"seed": record.cell["seed"], "seconds": seconds_total(record)}
            rows.append(row | {name: count and count.rate for name, count in shares.items()})
    found = pd.DataFrame(rows, columns=["defense", "attack", "seed", "seconds", ASR, CA]).dropna()
    # Times are shown on a logarithmic axis.
    return found[found["seconds"] > 0]


def _compare(pairs: pd.DataFrame) -> dict[str, float]:
    """Over pairs of a defense and no defense."""
    return {
        TIME: pairs["seconds"].sum() / pairs["seconds_bare"].sum(),
        ASR: pairs[ASR].mean(),
        LOST: (pairs[f"{CA}_bare"] - pairs[CA]).mean(),
    }


def _estimates(seeds: list[dict[str, float]]) -> dict[str, float]:
    """Each value, and the ends of its interval."""
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
    """Time and one value, in percent, with the front as stairs."""
    means = data[data["attack"] == MEAN]
    for _, row in data.iterrows():
        look, is_mean = mark(ranks[row["defense"]]), row["attack"] == MEAN
        size = {"zorder": 4} if is_mean else {"markersize": 2.5, "alpha": 0.6}
        x, y = [row[TIME]], [100 * row[value]]
        axes.plot(x, y, **look | size)
        if is_mean and row["seeds"] > 1:
            ends = [[row[f"{name}_{end}"] for end in ("low", "high")] for name in (TIME, value)]
            axes.plot(ends[0], y * 2, color=look["color"], linewidth=0.9, zorder=3)
            axes.plot(x * 2, 100 * np.array(ends[1]), color=look["color"], linewidth=0.9, zorder=3)
    axes.set_xscale("log")
    axes.set_xlim(data[TIME].min() / 1.15, data[TIME].max() * 1.15)
    stairs = means[means[f"front_{value}"].astype(bool)].sort_values(TIME)
    xs = [*stairs[TIME], 10 * data[TIME].max()]
    ys = 100 * stairs[value]
    axes.plot(xs, [*ys, ys.iloc[-1]], "--", color="#999999", drawstyle="steps-post", linewidth=1)
    axes.xaxis.set_major_locator(LogLocator(base=2, subs=(1, 1.5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("training time (no defense = 1)")


def _sentences(data: pd.DataFrame, attacks: int) -> Iterator[str]:
    means = data[data["attack"] == MEAN]
    yield f"Large marks: mean over {several(attacks, 'attack')}; small: each of them"
    yield "Dashed: Pareto front"
    if (means["seeds"] > 1).any():
        yield "Bars: 95 % t interval over seeds"
    fewer = means[means["attacks"] < attacks]
    if len(fewer):
        counts = (f"{row.defense} {row.attacks}" for row in fewer.itertuples())
        yield f"Means over fewer attacks: {', '.join(counts)}"

"""CA and ASR against a setting that is swept, such as T1 of CBD.

A column of panels per attack, a line per defense. Specs that differ only in the swept field are on
one line.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from textwrap import fill, wrap
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from bdbench.figures.picture import Picture, Place, caption, grid, legend, line_style
from bdbench.models.plugins import spec
from bdbench.models.plugins.errors import InvalidInput, require
from bdbench.models.plugins.spec import Spec
from bdbench.records.consistency import AXES
from bdbench.records.parts import RecordedSpec
from bdbench.tables.groups import ASR, CA, Group, is_none, name_order
from bdbench.tables.selection import SETTING, Selection
from bdbench.tables.source import defaults

ROWS = {CA: "CA (%)", ASR: "ASR (%)"}
LOG_RATIO = 20
"""The axis is logarithmic if the largest value is at least this many times the smallest."""
TICK_DISTANCE = 0.15
"""Smallest distance between two tick labels, as a share of the axis."""
MOST_LABELS, LONGEST_LABEL = 10, 24
CHARACTER = 0.065
"""Width of a character of a tick label, inches."""
LINE_HEIGHT = 9.5
"""Height of a label beside a panel, in percent on the vertical axis."""


@dataclass(frozen=True)
class Swept:
    """A field of the plugins of one axis, such as defense.t1."""

    axis: str
    field: str

    def __str__(self) -> str:
        return f"{self.axis}.{self.field}"

    def value(self, group: Group) -> Any:
        """The value of the field in a group that has it."""
        given = self._spec(group)
        if self.field in given.fields:
            return given.fields[self.field]
        return _default(self.axis, given.name, self.field)

    def is_in(self, group: Group) -> bool:
        """Whether the plugin of a group has the field. A field that is newer than the records is
        missing in specs with its default."""
        given = self._spec(group)
        return self.field in given.fields or _default(self.axis, given.name, self.field) is not None

    def rest(self, group: Group) -> tuple[str, ...]:
        """The specs of a cell without the field."""
        cell = group.records[0].cell
        return tuple(
            _without(str(cell[axis]), self.field if axis == self.axis else "") for axis in AXES
        )

    def _spec(self, group: Group) -> Spec:
        found: Spec = group.records[0].cell[self.axis]
        return found


@dataclass(frozen=True)
class Point:
    """The cells of one value. The names of `group` omit the swept field."""

    value: Any
    group: Group


def draw(selection: Selection) -> Picture:
    """Draw the one field that is swept, or the one that `selection.field` names."""
    groups = selection.groups
    if not selection.wanted.get("attack"):
        groups = [g for g in groups if not is_none(g.names["attack"])] or groups
    require(
        any(group.used for group in groups),
        f"all selected cells of {selection.results} failed or are not finite",
    )
    swept = _swept(selection, [group for group in groups if group.used])
    lines = _lines(swept, groups)
    points = [
        Point(swept.value(group), _without_field(group, swept))
        for line in lines
        for group in line
        if _is_swept(swept, line)
    ]
    selection.settled([point.group for point in points], SETTING)
    finished = [point for point in points if point.group.used]
    scale = Scale([point.value for point in finished])
    data = _table(swept, finished, _undefended(selection, swept, finished), scale)
    figure = _figure(swept, data, scale, points, _ranks(swept, selection))
    remarks = tuple(_remarks(swept, groups, lines))
    return Picture(figure, data, remarks, subject=f"{swept.axis}-{swept.field}")


def _lines(swept: Swept, groups: Iterable[Group]) -> list[list[Group]]:
    """The groups that have the field, those that differ only in it together."""
    found: dict[tuple[str, ...], list[Group]] = {}
    for group in groups:
        if swept.is_in(group):
            found.setdefault(swept.rest(group), []).append(group)
    return list(found.values())


def _is_swept(swept: Swept, line: Iterable[Group]) -> bool:
    """Whether a line has several values with results."""
    return len({repr(swept.value(group)) for group in line if group.used}) > 1


def _varies(swept: Swept, groups: Sequence[Group]) -> bool:
    """Whether any line has several values."""
    members = [group for group in groups if swept.is_in(group)]
    # Most fields have one value in all groups: the first check is the fast one.
    return _is_swept(swept, members) and any(
        _is_swept(swept, line) for line in _lines(swept, members)
    )


def _remarks(
    swept: Swept, groups: Iterable[Group], lines: Iterable[Sequence[Group]]
) -> Iterator[str]:
    """Lines about the selected groups that the figure leaves out."""
    without = {group.names[swept.axis] for group in groups if not swept.is_in(group)}
    without = {name for name in without if not is_none(name)}
    if without:
        yield f"left out, no field {swept.field}: {', '.join(sorted(without))}"
    single = [line[0].names for line in lines if not _is_swept(swept, line)]
    if single:
        names = (f"{each['defense']} on {each['attack']}" for each in single)
        yield f"left out, a single value of {swept.field}: {', '.join(dict.fromkeys(names))}"


def _swept(selection: Selection, groups: Sequence[Group]) -> Swept:
    """The field on the horizontal axis. Raises `InvalidInput` unless there is exactly one."""
    known = _fields(groups)
    named = _named(selection.field, known) if selection.field else known
    found = [each for each in named if _varies(each, groups)]
    if not found and selection.field:
        raise _constant(named[0], groups, selection)
    if not found:
        raise InvalidInput(
            f"no field is swept in {selection.results}: no two specs differ in one field only; "
            'create such cells with, for example, `bdbench run --defense "cbd(t1=[3, 5, 8])"`'
        )
    names = " or ".join(f"--field {each}" for each in found)
    require(len(found) == 1, f"several fields are swept in {selection.results}: choose {names}")
    return found[0]


def _named(name: str, known: Sequence[Swept]) -> list[Swept]:
    """The fields with this name, which may include the axis. Raises `InvalidInput` for none."""
    found = [each for each in known if name in (each.field, str(each))]
    names = dict.fromkeys([*(each.field for each in known), *map(str, known)])
    require(bool(found), f"no record has a field {name!r}{spec.did_you_mean(name, names)}")
    return found


def _constant(swept: Swept, groups: Sequence[Group], selection: Selection) -> InvalidInput:
    """The error for a field that is not swept."""
    own = [group for group in groups if swept.is_in(group)]
    values = dict.fromkeys(repr(swept.value(group)) for group in own)
    plugin = own[0].records[0].cell[swept.axis].name
    has = "no two that differ in nothing else" if len(values) > 1 else "one value"
    return InvalidInput(
        f"{swept} has {has} in {selection.results}, {', '.join(values)}; run several values with "
        f'`bdbench run --{swept.axis} "{plugin}({swept.field}=[...])"`'
    )


def _fields(groups: Iterable[Group]) -> list[Swept]:
    """The fields in the specs of all groups."""
    found = {
        Swept(axis, field): None
        for group in groups
        for axis in AXES
        for field in group.records[0].cell[axis].fields
    }
    return list(found)


def _default(axis: str, name: str, field: str) -> Any:
    """The default of a field of a built-in plugin or the recipe; None if it has no such field."""
    if axis != "recipe":
        return defaults(f"bdbench.{axis}s", name).get(field)
    # Imported only if a recipe is swept, because it imports torch.
    from bdbench.models.training.recipe import Recipe

    known = spec.fields_of(Recipe)
    return known[field].default if field in known else None


def _without(text: str, field: str) -> str:
    given = RecordedSpec.of(text)
    return str(Spec(given.name, {k: n for k, n in given.fields.items() if k != field}))


def _without_field(group: Group, swept: Swept) -> Group:
    """The same records, with names without the field."""
    axis = swept.axis
    return Group(group.records, {**group.names, axis: _without(group.names[axis], swept.field)})


def _undefended(selection: Selection, swept: Swept, points: Sequence[Point]) -> list[Group]:
    """The groups of no defense on the same attacks, if a field of defenses is swept."""
    if swept.axis != "defense":
        return []
    axes = [axis for axis in AXES if axis != "defense"]
    places = {tuple(point.group.names[axis] for axis in axes) for point in points}
    return [
        group
        for group in selection.with_baseline
        if is_none(group.names["defense"]) and tuple(group.names[a] for a in axes) in places
    ]


class Scale:
    """The horizontal axis: numeric if all values are numbers, otherwise categorical."""

    def __init__(self, values: Iterable[Any]) -> None:
        known = {repr(value): value for value in values}.values()
        self.numeric = all(map(_is_number, known))
        ordered = sorted(known, key=_order)
        self.shown: list[Any] = ordered if self.numeric else [str(value) for value in ordered]
        low, high = (ordered[0], ordered[-1]) if self.numeric else (0, 0)
        self.logarithmic = bool(low > 0 and high / low >= LOG_RATIO)

    def show(self, value: Any) -> Any:
        """A value as a number or, on a categorical axis, as text."""
        return value if self.numeric else str(value)

    def place(self, shown: Any) -> float:
        """The position of a shown value."""
        return float(shown if self.numeric else self.shown.index(shown))

    def apply(self, axes: Axes) -> None:
        """Set scale and ticks of a panel, and of those that share its axis."""
        if self.logarithmic:
            axes.set_xscale("log")
        ticks = self._ticks()
        axes.set_xticks([self.place(value) for value in ticks])
        if self.numeric:
            axes.set_xticklabels([f"{value:g}" for value in ticks])
        else:
            self._name(axes)
            axes.set_xlim(-0.5, len(self.shown) - 0.5)
        axes.xaxis.set_minor_locator(NullLocator())

    def _name(self, axes: Axes) -> None:
        """Label the categories; upright if a word is wider than the place of its category."""
        short = [_short(value) for value in self.shown]
        texts = short if len({*short}) == len(short) else self.shown
        inches = axes.get_window_extent().width / axes.figure.dpi
        width = int(inches / CHARACTER / len(texts)) - 1
        broken = {text: wrap(text, max(width, 1), break_long_words=False) for text in texts}
        fits = all(len(line) <= width for lines in broken.values() for line in lines)
        upright = [fill(text, LONGEST_LABEL) for text in texts]
        flat = ["\n".join(broken[text]) for text in texts]
        axes.set_xticklabels(flat if fits else upright)
        for panel in axes.get_shared_x_axes().get_siblings(axes):
            panel.tick_params(axis="x", labelrotation=0 if fits else 90)

    def _ticks(self) -> list[Any]:
        """The first value, the last, and those in between that have room for their labels."""
        if not self.numeric:
            return self.shown
        places = [math.log(value) if self.logarithmic else value for value in self.shown]
        gap = (places[-1] - places[0]) * TICK_DISTANCE
        kept = [0]
        for number, place in enumerate(places[:-1]):
            if place - places[kept[-1]] >= gap and places[-1] - place >= gap:
                kept.append(number)
        return [self.shown[number] for number in dict.fromkeys([*kept, len(places) - 1])]


def _short(text: str) -> str:
    """A value; of the spec of an attack, only what differs from its defaults."""
    given = RecordedSpec.of(text)
    usual = defaults("bdbench.attacks", given.name)
    fields = {name: value for name, value in given.fields.items() if usual.get(name, ()) != value}
    return str(Spec(given.name, fields)) if len(fields) < len(given.fields) else text


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _order(value: Any) -> tuple[bool, float, str]:
    """Sort key: numbers first, then text."""
    return (False, value, "") if _is_number(value) else (True, 0.0, str(value))


def _table(
    swept: Swept, points: Sequence[Point], undefended: Sequence[Group], scale: Scale
) -> pd.DataFrame:
    """For each attack, defense and value, a row of means with 95 % intervals and then one per seed.

    `seed` is empty for means, and `value` for no defense.
    """
    rows: list[dict[str, Any]] = []
    lines = [(point.group, scale.show(point.value)) for point in points]
    lines.sort(key=lambda line: scale.place(line[1]))
    lines += [(group, None) for group in undefended]
    lines.sort(key=lambda line: [name_order(line[0].names[a]) for a in ("attack", "defense")])
    for group, value in lines:
        names = {axis: group.names[axis] for axis in ("attack", "defense")}
        cell = {**names, "field": str(swept), "value": value}
        rows.append({**cell, "seed": None, "seeds": len(group.used), **_interval(group)})
        rates = {metric: group.rates(metric) for metric in ROWS}
        for record in group.used:
            seed = record.cell.seed
            shares = {metric: rates[metric].get(seed, math.nan) for metric in ROWS}
            rows.append({**cell, "seed": seed, "seeds": 1, **shares})
    return pd.DataFrame(rows).astype({"seed": "Int64"})


def _interval(group: Group) -> dict[str, float]:
    found: dict[str, float] = {}
    for metric in ROWS:
        ends = (metric, f"{metric}_low", f"{metric}_high")
        found |= zip(ends, group.estimate(metric), strict=True)
    return found


def _ranks(swept: Swept, selection: Selection) -> dict[str, int]:
    """By the name of a line, its rank: the first of its defenses."""
    if swept.axis != "defense":
        return selection.ranks
    found: dict[str, int] = {}
    for name, rank in sorted(selection.ranks.items(), key=itemgetter(1)):
        found.setdefault(_without(name, swept.field), rank)
    return found


def _figure(
    swept: Swept,
    data: pd.DataFrame,
    scale: Scale,
    points: Sequence[Point],
    ranks: Mapping[str, int],
) -> Figure:
    attacks = list(dict.fromkeys(data["attack"]))
    places = [
        (metric, attack)
        for attack in attacks
        for metric in ROWS
        if metric == CA or not is_none(attack)
    ]
    owners = {point.group.records[0].cell[swept.axis].name for point in points}
    below = f"{swept.field} of {owners.pop()}" if len(owners) == 1 else swept.field
    figure, panels = grid(places, ROWS, height=1.5, below=below)
    names = sorted(set(data["defense"]), key=name_order)
    styles = {name: line_style(ranks[name], 3.5) for name in names}
    for place, axes in panels.items():
        _draw_panel(axes, data[data["attack"] == place[1]], place[0], styles, scale)
        axes.set(ylim=(-3, 103), yticks=range(0, 101, 25))
    scale.apply(next(iter(panels.values())))
    if _fit_beside(data, panels, names):
        for place in _last(panels):
            _label(panels[place], data[data["attack"] == place[1]], place[0], styles)
    else:
        legend(figure, styles)
    seeds = data.loc[data["seed"].isna(), "seeds"]
    caption(figure, [_with_value(swept, each) for each in points], seeds, *_sentences(data, scale))
    return figure


def _with_value(swept: Swept, point: Point) -> Group:
    """The cells of one value, with names that tell them from those of others on their line."""
    names = point.group.names
    place = f"{names['attack']} at {swept.field}={point.value}"
    return Group(point.group.records, {**names, "attack": place})


def _draw_panel(
    axes: Axes, data: pd.DataFrame, metric: str, styles: Mapping[str, dict[str, Any]], scale: Scale
) -> None:
    """Draw means with intervals in percent, and small dots for the seeds."""
    for number, (name, table) in enumerate(data.groupby("defense", sort=False)):
        style = styles[str(name)]
        means, seeds = table[table["seed"].isna()], table[table["seed"].notna()]
        if means["value"].isna().all():
            axes.axhline(100 * means[metric].iloc[0], **style | {"marker": "", "dashes": (1, 1.5)})
            continue
        # Categories have no order, so they are not joined; the defenses are side by side.
        shift = 0.0 if scale.numeric else _offset(number, data["defense"].nunique())
        xs, dots = ([scale.place(n) + shift for n in rows["value"]] for rows in (means, seeds))
        ys, low, high = (100 * means[f"{metric}{end}"] for end in ("", "_low", "_high"))
        marks = {name: value for name, value in style.items() if name != "dashes"}
        axes.plot(xs, ys, **style if scale.numeric else marks | {"linestyle": ""})
        if scale.numeric and len(xs) > 1:
            axes.fill_between(xs, low, high, color=style["color"], alpha=0.15, linewidth=0)
        else:
            axes.vlines(xs, low, high, color=style["color"], linewidth=0.9)
        if (means["seeds"] > 1).any():
            axes.plot(dots, 100 * seeds[metric], ".", color=style["color"], markersize=2.5)


def _offset(number: int, count: int) -> float:
    """Horizontal offset of one of `count` defenses from the position of a category."""
    return (number - (count - 1) / 2) * min(0.12, 0.8 / count)


def _fit_beside(data: pd.DataFrame, panels: Mapping[Place, Axes], names: Sequence[str]) -> bool:
    """Whether all lines can be labelled beside the last panels, which needs few and short names."""
    shown = [set(data[data["attack"] == attack]["defense"]) for _, attack in _last(panels)]
    short = len(names) <= MOST_LABELS and max(map(len, names)) <= LONGEST_LABEL
    return short and all(defenses == {*names} for defenses in shown)


def _last(panels: Mapping[Place, Axes]) -> list[Place]:
    """The rightmost panel of each row of panels."""
    found: dict[int, Place] = {}
    for place, axes in panels.items():
        cell = axes.get_subplotspec()
        assert cell is not None
        found[cell.rowspan.start] = place
    return list(found.values())


def _label(
    axes: Axes, data: pd.DataFrame, metric: str, styles: Mapping[str, dict[str, Any]]
) -> None:
    """Write the name of each line beside the panel, at the height of its end."""
    means = data[data["seed"].isna()]
    ends = {
        str(name): 100 * float(table[metric].iloc[-1])
        for name, table in means.groupby("defense", sort=False)
    }
    known = {name: end for name, end in ends.items() if not math.isnan(end)}
    for name, height in _spread(known).items():
        axes.annotate(
            name,
            (1, height),
            xytext=(4, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            color=styles[name]["color"],
            fontsize=6.5,
            va="center",
            annotation_clip=False,
        )


def _spread(heights: Mapping[str, float]) -> dict[str, float]:
    """The heights, percent, moved so that no label covers another and all are in the panel."""
    found: dict[str, float] = {}
    lowest = -3 + LINE_HEIGHT / 2
    for name, height in sorted(heights.items(), key=lambda pair: (pair[1], pair[0])):
        found[name] = lowest = max(height, lowest)
        lowest += LINE_HEIGHT
    highest = 103 - LINE_HEIGHT / 2
    for name in reversed(found):
        found[name] = highest = min(found[name], highest)
        highest -= LINE_HEIGHT
    return found


def _sentences(data: pd.DataFrame, scale: Scale) -> Iterator[str]:
    means = data[data["seed"].isna()]
    shape = "Bands" if scale.numeric else "Bars"
    drawn = means[means["value"].notna()]["seeds"]
    several = ["interval over seeds"] * bool((drawn > 1).any())
    one = ["Wilson interval of one seed"] * bool((drawn == 1).any())
    yield f"{shape}: 95 % {' or '.join([*several, *one])}"
    if several:
        yield "Dots: seeds"
    if means["value"].isna().any():
        yield "Dotted: no defense"

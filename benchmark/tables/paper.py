"""The tables of the paper, made of our records: which cell stands where, beside what is printed.

For each table a function chooses its groups among those of one data set, model and recipe, and
another lays them out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from statistics import median

from bdbench.cells.suites import ATTACKS, DEFENSES
from bdbench.models.plugins.spec import Spec
from bdbench.records.consistency import AXES
from bdbench.records.record import ALONE, STAGES, Record
from bdbench.tables.groups import ASR, CA, FLOOR, Group, is_none, mean, passes
from bdbench.tables.leaderboard import MISSING, LeaderboardBlock, decimal, plus_minus
from bdbench.tables.published import reference
from bdbench.tables.sheet import NOTHING, PaperTable, TableCell
from bdbench.tables.statistics import Estimate, average, common_seeds

Selection = Callable[[Sequence[Group]], list[Group]]
Layout = Callable[[LeaderboardBlock, Sequence[Group]], PaperTable]
PAIR = {ASR: "ASR", CA: "CA"}
LEGEND = """\
In percent, after the last epoch: ASR, share of the test images of other classes that the trigger \
turns into the target; CA, accuracy on clean test images. ±: half width of the 95 % t interval \
over seeds; with one seed, the CSV file has Wilson intervals. **Bold**: lowest ASR against an \
attack; ~: cannot be told from it at 95 %. In brackets: what the paper prints, and by how much \
ours is more. The ASR of no attack is the floor, the share that is called the target without any \
trigger; the paper prints 0. Averages are over the attacks that have results (how many, if not \
all), the paper's too, and ours are from the seeds that all of these have."""
TIMING = """\
Seconds of training, with the undefended network where a defense starts from one; more: than with \
no defense on the same data, paired by seed; passes: forward passes of one image, of which a \
backward pass costs two, relative to no defense. Median over the seeds and, in square brackets, \
the range from the least to the largest: that of n repeats holds the median of all possible ones \
with a probability of 1 - 2^(1-n), 94 % for five. In round brackets: what the paper prints for one \
V100, and by how much ours is more. Apart from training: reading the data, poisoning them, \
training the attack (prepare), recording and compiling steps (capture) and evaluating; what was at \
hand already took no time."""
APART = tuple(stage for stage in STAGES if stage not in ("undefended", "fit"))
"""What a cell spends time on beside training."""
COMPANY = {
    "shared": ("‖", "others used the device meanwhile"),
    "unwatched": ("?", "not known whether others used the device meanwhile"),
}
"""Marks of seconds, by what is known of `measured.others`."""


def table_1(block: LeaderboardBlock, groups: Sequence[Group]) -> PaperTable:
    """Attacks by defenses, and averages over the attacks."""
    defenses = _in_order({g.names["defense"] for g in groups}, DEFENSES)
    attacks = _in_order({g.names["attack"] for g in groups}, _plugins(ATTACKS))
    rows = [
        ((attack,), _pairs(block, [(defense, attack) for defense in defenses], 1))
        for attack in attacks
    ]
    poisoned = [attack for attack in attacks if not is_none(attack)]
    if len(poisoned) > 1:
        averages = (_average(block, name, metric, poisoned) for name in defenses for metric in PAIR)
        rows.append((("average",), tuple(averages)))
    return PaperTable(block.title(), ("attack",), _under(defenses), tuple(rows), _notes(groups, 1))


def table_2(block: LeaderboardBlock, groups: Sequence[Group]) -> PaperTable:
    """Poisoning rates and defenses by attacks."""
    places = {(*_without_rate(group), group.names["defense"]): group for group in groups}
    attacks = _in_order({attack for attack, *_ in places}, _plugins(ATTACKS))
    defenses = _in_order({defense for *_, defense in places}, DEFENSES)
    rows = []
    for rate in sorted({rate for _, rate, _ in places}):
        for defense in defenses:
            found = [places.get((attack, rate, defense)) for attack in attacks]
            if any(found):
                cells = [(defense, group.names["attack"] if group else "") for group in found]
                rows.append(((f"{100 * rate:g} %", defense), _pairs(block, cells, 2)))
    corner = ("rate", "defense")
    return PaperTable(block.title(), corner, _under(attacks), tuple(rows), _notes(groups, 2))


def table_3(block: LeaderboardBlock, groups: Sequence[Group]) -> PaperTable:
    """Seconds of training, and how much more a defense takes than none, seed by seed."""
    defenses = _in_order({g.names["defense"] for g in groups}, DEFENSES)
    attacks = _in_order({g.names["attack"] for g in groups}, _plugins(ATTACKS))
    columns = [
        (defense, heading)
        for defense in defenses
        for heading in (("seconds",) if is_none(defense) else ("seconds", "more, %", "passes, x"))
    ]
    rows = []
    for attack in attacks:
        bare = next(g for g in groups if g.names["attack"] == attack and _undefended(g))
        found = (block.cells.get((defense, attack)) for defense in defenses)
        entries = [entry for n, group in enumerate(found) for entry in _timing(group, bare, n == 0)]
        rows.append(((attack,), tuple(entries)))
    return PaperTable(block.title(), ("attack",), tuple(columns), tuple(rows), _notes(groups, 3))


def stage_table(block: LeaderboardBlock, groups: Sequence[Group]) -> PaperTable:
    """Seconds of the other stages of the cells of Table 3."""
    attacks = _in_order({g.names["attack"] for g in groups}, _plugins(ATTACKS))
    defenses = _in_order({g.names["defense"] for g in groups}, DEFENSES)
    rows = [
        ((attack, defense), tuple(TableCell(_with_range(stage_seconds(group, s))) for s in APART))
        for attack in attacks
        for defense in defenses
        if (group := block.cells.get((defense, attack))) and group.used
    ]
    columns = tuple(("seconds", stage) for stage in APART)
    title = f"{block.title()} · apart from training"
    return PaperTable(title, ("attack", "defense"), columns, tuple(rows))


def table_5(block: LeaderboardBlock, groups: Sequence[Group]) -> PaperTable:
    """Defenses by attacks."""
    attacks = _in_order({g.names["attack"] for g in groups}, ["adaptive"])
    defenses = _in_order({g.names["defense"] for g in groups}, DEFENSES)
    rows = [
        ((defense,), _pairs(block, [(defense, attack) for attack in attacks], 5))
        for defense in defenses
    ]
    return PaperTable(block.title(), ("defense",), _under(attacks), tuple(rows), _notes(groups, 5))


def select_table_1(groups: Sequence[Group]) -> list[Group]:
    """For Table 1: all but adaptive attacks, and of an attack at several rates the default one."""
    swept = set(map(_without_rate, select_table_2(groups)))
    return [
        group
        for group in groups
        if not _adaptive(group) and (_without_rate(group) not in swept or _has_default_rate(group))
    ]


def select_table_2(groups: Sequence[Group]) -> list[Group]:
    """For Table 2: attacks that occur at several rates and differ in nothing else."""
    poisoned = [g for g in groups if not _adaptive(g) and not is_none(g.names["attack"])]
    kinds = Counter(kind for kind, _ in set(map(_without_rate, poisoned)))
    return [group for group in poisoned if kinds[_without_rate(group)[0]] > 1]


def select_table_3(groups: Sequence[Group]) -> list[Group]:
    """For Table 3: whatever was trained on data on which no defense was trained, too."""
    known = {g.names["attack"] for g in groups if g.used and _undefended(g)}
    return [group for group in groups if group.used and group.names["attack"] in known]


def select_table_5(groups: Sequence[Group]) -> list[Group]:
    """For Table 5: adaptive attacks."""
    return [group for group in groups if _adaptive(group)]


TABLES: Mapping[int, tuple[Selection, tuple[Layout, ...]]] = {
    1: (select_table_1, (table_1,)),
    2: (select_table_2, (table_2,)),
    3: (select_table_3, (table_3, stage_table)),
    5: (select_table_5, (table_5,)),
}


def sheets(table: int, groups: Sequence[Group]) -> list[tuple[list[PaperTable], list[Group]]]:
    """The sheets of each data set, model and recipe that has something for the table, with the
    groups that are in them."""
    select, layouts = TABLES[table]
    made = []
    for _, members in groupby(groups, key=lambda group: [group.names[axis] for axis in AXES[:3]]):
        block = LeaderboardBlock(tuple(members), apart=False)
        if chosen := select(block.groups):
            made.append(([lay_out(block, chosen) for lay_out in layouts], chosen))
    return made


def _pairs(
    block: LeaderboardBlock, cells: Iterable[tuple[str, str]], table: int
) -> tuple[TableCell, ...]:
    """ASR and CA of each cell, by defense and attack."""
    return tuple(
        _entry(block, group, metric, table) if group else NOTHING
        for group in map(block.cells.get, cells)
        for metric in PAIR
    )


def _entry(block: LeaderboardBlock, group: Group, metric: str, table: int) -> TableCell:
    field = block.field(group)
    marks = "".join(field.marks)
    if field.state:
        return TableCell(field.state, marks=marks)
    if metric == CA:
        return TableCell(field.ca, _beside(group, CA, table))
    if is_none(group.names["attack"]):
        return TableCell(field.floor, _beside(group, ASR, table), marks=marks)
    best, tied = field.standing == "best", field.standing == "tied"
    return TableCell(field.asr, _beside(group, ASR, table), best, tied, marks)


def _beside(group: Group, metric: str, table: int) -> str:
    """What the paper prints for this, and by how much ours is more; percent."""
    printed = _printed(group, metric, table)
    if printed is None:
        return ""
    floor = metric == ASR and is_none(group.names["attack"])
    return _comparison(printed, 100 * group.estimate(FLOOR if floor else metric)[0])


def _comparison(printed: float, ours: float) -> str:
    more = "" if math.isnan(ours) else f"; {ours - printed:+z.1f}"
    return f"{printed:g}{more}"


def _printed(group: Group, metric: str, table: int) -> float | None:
    found = reference(group.records[0].cell, table)
    value = getattr(found.published, metric) if found else None
    return None if value is None else float(value)


def _average(
    block: LeaderboardBlock, defense: str, metric: str, attacks: Sequence[str]
) -> TableCell:
    """Over the attacks that the defense has results for, see `average`."""
    shares = block.shares(defense, metric, attacks)
    if not shares:
        return NOTHING
    groups = [block.cells[defense, attack] for attack in shares]
    ours, half = average(list(shares.values()))
    some = f" [{len(groups)} of {len(attacks)}]" * (len(groups) < len(attacks))
    printed = [_printed(group, metric, 1) for group in groups]
    known = [value for value in printed if value is not None]
    beside = _comparison(round(mean(known), 2), 100 * ours) if len(known) == len(groups) else ""
    return TableCell(plus_minus(100 * ours, 100 * half) + some, beside)


def _timing(group: Group | None, bare: Group, undefended: bool) -> list[TableCell]:
    """Seconds; for a defense also by how much they are more, and its passes relative to none's."""
    if group is None or not group.used:
        return [NOTHING] * (1 if undefended else 3)
    marks = "".join(COMPANY[flag][0] for flag in company(group))
    seconds = list(group.seconds.values())
    first = TableCell(_with_range(seconds), _paper_seconds(group), marks=marks)
    if undefended:
        return [first]
    more = overhead(group, bare)
    return [
        first,
        TableCell(_with_range(more), _paper_increase(group, bare, more)),
        TableCell(_ratio(passes_ratio(group, bare))),
    ]


def _ratio(value: float) -> str:
    return MISSING if math.isnan(value) else f"{value:.2f}"


def overhead(group: Group, bare: Group) -> list[float]:
    """By how much more seconds than no defense it trains, percent, for each seed that both have."""
    seconds, base = group.seconds, bare.seconds
    common = common_seeds((seconds, base))
    return [100 * (seconds[seed] / base[seed] - 1) for seed in common if base[seed]]


def passes_ratio(group: Group, bare: Group) -> float:
    """Its forward passes, of which a backward pass costs two, to those of no defense, over the
    seeds that both have."""
    ours, theirs = ({r.cell["seed"]: passes(r) for r in side.used} for side in (group, bare))
    seeds = common_seeds((ours, theirs))
    base = mean(theirs[seed] for seed in seeds)
    return mean(ours[seed] for seed in seeds) / base if base else math.nan


def stage_seconds(group: Group, stage: str) -> list[float]:
    """Of each used record; older ones have no capture, as they captured nothing."""
    return [float(record.measured["seconds"].get(stage, 0)) for record in group.used]


def company(group: Group) -> dict[str, list[Record]]:
    """The used records of each flag of `COMPANY` that occurs."""
    found: dict[str, list[Record]] = {flag: [] for flag in COMPANY}
    for record in group.used:
        others = record.measured.get("others")
        if others is None:
            found["unwatched"].append(record)
        elif others > ALONE:
            found["shared"].append(record)
    return {flag: those for flag, those in found.items() if those}


def spread(values: Sequence[float]) -> Estimate:
    """(median, least, largest). One value has no range (nan), none at all has no median either."""
    middle = median(values) if values else math.nan
    return (middle, min(values), max(values)) if len(values) > 1 else (middle, math.nan, math.nan)


def _with_range(values: Sequence[float]) -> str:
    """Whole numbers from 100 on, where tenths are beside the point."""
    found = spread(values)
    middle, low, high = (f"{v:.0f}" if found[0] >= 100 else decimal(v) for v in found)
    return f"{middle} [{low}, {high}]" if len(values) > 1 else middle


def _published_seconds(group: Group) -> float | None:
    found = reference(group.records[0].cell, 3)
    return found.published.seconds if found else None


def _paper_seconds(group: Group) -> str:
    seconds = _published_seconds(group)
    return "" if seconds is None else f"{seconds:g}"


def _paper_increase(group: Group, bare: Group, ours: Sequence[float]) -> str:
    theirs, base = _published_seconds(group), _published_seconds(bare)
    if theirs is None or base is None:
        return ""
    return _comparison(round(100 * (theirs / base - 1), 1), spread(ours)[0])


def _under(names: Iterable[str]) -> tuple[tuple[str, str], ...]:
    return tuple((name, heading) for name in names for heading in PAIR.values())


def _notes(groups: Sequence[Group], table: int) -> tuple[str, ...]:
    """The marks that occur, what is otherwise than in the paper, and the paper's own notes."""
    found = [reference(group.records[0].cell, table) for group in groups]
    departures = dict.fromkeys(d for row in found if row for d in row.departures)
    remarks = dict.fromkeys(
        f"paper, {row.published.defense} on {row.published.attack}: {row.published.note}"
        for row in found
        if row and row.published.note
    )
    other = [f"otherwise than in the paper: {'; '.join(departures)}"] if departures else []
    block = LeaderboardBlock(tuple(groups), apart=False)
    disturbed = block.marked(COMPANY, company) if table == 3 else ()
    return (*block.footnotes(), *disturbed, *other, *remarks)


def _undefended(group: Group) -> bool:
    return is_none(group.names["defense"])


def _adaptive(group: Group) -> bool:
    return Spec.of(group.records[0].cell["attack"]).name == "adaptive"


def _without_rate(group: Group) -> tuple[str, float]:
    """The label of an attack as it would be at its default rate, and its rate."""
    rate = Spec.of(group.records[0].cell["attack"]).fields.get("poisoning_rate", 0.0)
    shown = Spec.of(group.names["attack"])
    fields = {key: value for key, value in shown.fields.items() if key != "poisoning_rate"}
    return str(Spec(shown.name, fields)), float(rate)


def _has_default_rate(group: Group) -> bool:
    """A label has only the fields that differ from their defaults."""
    return "poisoning_rate" not in Spec.of(group.records[0].labels["attack"]).fields


def _plugins(specs: Iterable[str]) -> list[str]:
    return [Spec.of(text).name for text in specs]


def _in_order(names: Iterable[str], known: Sequence[str]) -> list[str]:
    """By the place of their plugin in `known`, the others behind, by name."""

    def place(text: str) -> tuple[int, str]:
        name = Spec.of(text).name
        return (list(known).index(name) if name in known else len(known)), text

    return sorted(names, key=place)
